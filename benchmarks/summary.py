"""The page docs/results.md and the figures in README.md: findings filled in with kept results."""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.columns import accuracies, cells_of
from benchmarks.page import MARK, rows, table_section
from benchmarks.records import Kept

FINDINGS = Path(__file__).parent / "findings.yaml"
BEGIN, END = (
    "<!-- figures: made by `python benchmarks/reproduce.py --table`, never edited -->",
    "<!-- end of figures -->",
)

HEAD = """# Results

Made by `python benchmarks/reproduce.py --table` from the results kept in `benchmarks/results/`;
do not edit. Accuracy is the student's at the last step, on the whole test split: mean ± standard
deviation over seeds.

"""

LINKS = """
- [Data-free methods](results/data-free.md): equal time on MNIST and digits, ViT teachers, CIFAR-10
- [The default](results/untuned.md): seven testbeds, from digits to waveforms and a table
- [Sounds, texts and tables](results/modalities.md): without data, with pictures of inputs
- [Transfer losses](results/transfer.md): with few labels, and beside a data-free method
- [Schemes](results/schemes.md): several students or teachers, attacked inputs, another modality
- [Across modalities](results/cross-modal.md): digits to edges with few labels, and its controls
- [Ablation](results/ablation.md): what each part of the default does
- [Cost](results/cost.md): the time of a step, and of each loss
"""

PLOT = """
![{title}: accuracy of the seeds, their mean and standard deviation](results/{name}.svg)
"""

NOTE = """
† The command or one of its configuration files has changed since the run. The README shows no such
figures.
"""


class NotRun(Exception):
    """A figure is not known."""


@dataclass
class Figures:
    """The known figures: of all rows that have run, or only of current rows.

    Args:
        current: whether to know only rows whose command and files have not changed.
    """

    tables: Sequence[dict[str, Any]]
    kept: Kept
    current: bool = False

    def knows(self, row: dict[str, Any]) -> bool:
        return bool(self.kept.lines(row)) and not (self.current and self.kept.changed(row))

    def filled(self, text: str) -> str | None:
        """The text with its figures; nothing where one is not known, marked where one is old.

        Raises:
            ValueError: for a row or a table that there is not.
        """
        used: list[dict[str, Any]] = []
        try:
            told = re.sub(r"{([^{}]+)}", lambda match: self._figure(match[1].split(), used), text)
        except NotRun:
            return None
        seeds = {row["name"]: len(self.kept.lines(row)) for row in used}
        few, many = (bound(seeds.values(), default=0) for bound in (min, max))
        if many:
            number = f"{many} seed{'s' * (many > 1)}" if few == many else f"{few} to {many} seeds"
            told += f" ({number}{' each' * (len(seeds) > 1)})"
        return told + MARK * any(self.kept.changed(row) for row in used)

    def _figure(self, words: list[str], used: list[dict[str, Any]]) -> str:
        match words:
            case ["best", count, "of", name]:
                best = sorted(self._table(name), key=self._mean, reverse=True)[: int(count)]
                used += best
                return ", ".join(f"{row['title']} {self._cell(row)}" for row in best)
            case ["number", "of", name]:
                return str(len(self._table(name)))
            case ["cost", name, *keys]:
                return self._cost(name, keys)
            case [one, "less", other]:
                used += (pair := [self._row(one), self._row(other)])
                return f"{100 * (self._mean(pair[0]) - self._mean(pair[1])):.1f} points"
        name, *column = words
        used.append(row := self._row(name))
        return self._cell(row, " ".join(column) or "student")

    def _table(self, name: str) -> list[dict[str, Any]]:
        """The known rows of a table, without controls."""
        of_it = [row for table in self.tables if table["name"] == name for row in table["rows"]]
        return self._known(name, [row for row in of_it if not row.get("control")])

    def _row(self, name: str) -> dict[str, Any]:
        every = [row for table in self.tables for row in table["rows"]]
        return self._known(name, [row for row in every if row["name"] == name])[0]

    def _known(self, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not rows:
            raise ValueError(f"a finding names {name}, which no table has")
        if found := [row for row in rows if self.knows(row)]:
            return found
        raise NotRun(name)

    def _mean(self, row: dict[str, Any]) -> float:
        return statistics.mean(accuracies(self.kept.results(row)))

    def _cell(self, row: dict[str, Any], column: str = "student") -> str:
        return cells_of(row, self.kept.results(row))[column]

    def _cost(self, name: str, keys: Sequence[str]) -> str:
        file = self.kept.records / f"{name}.json"
        if not file.exists():
            raise NotRun(name)
        found = json.loads(file.read_text())
        for key in keys:
            found = found[key]
        return f"{found:.2f}"


def findings(figures: Figures, readme: bool) -> Iterator[str]:
    """The findings whose figures are known, as lines of a list."""
    for finding in yaml.safe_load(FINDINGS.read_text()):
        told = figures.filled(finding["text"])
        if told and (finding.get("readme") or not readme):
            yield textwrap.fill(f"- {told}", 100, subsequent_indent="  ") + "\n"


def summary_page(tables: Sequence[dict[str, Any]], kept: Kept) -> str:
    """The whole of docs/results.md."""
    text = HEAD + "".join(findings(Figures(tables, kept), readme=False))
    for table in tables:
        if table["page"] == "results":
            text += table_section(table, kept)
        elif "summary" in table:
            short = table["summary"]
            text += f"\n## {table['title']}\n\n{short['text']}{PLOT.format(**table)}"
            text += rows(table, kept, short["columns"])
    return text + (NOTE if MARK in text else "") + "\n## More\n" + LINKS


def readme(tables: Sequence[dict[str, Any]], kept: Kept, text: str) -> str:
    """README.md with a new block of figures, from current rows only."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    told = "".join(findings(Figures(tables, kept, current=True), readme=True))
    return f"{before}{BEGIN}\n{told}{END}{after}"
