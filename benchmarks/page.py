"""The pages docs/results/*.md, from the results that benchmarks/results/ keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.columns import cells_of
from benchmarks.records import COMMAND, Kept

MADE = """Made by `python benchmarks/reproduce.py --table` from the results kept in
`benchmarks/results/`; do not edit. [Summary](../results.md)."""

READING = """`python benchmarks/reproduce.py --list` prints the command of every row. Accuracy is
measured at the last step, on the whole test split. With several seeds it is the mean ± standard
deviation, and the lowest. Time is for the student's run, with synthesis and evaluation but without
the teacher's training. For a row marked †, the command or one of its configuration files has
changed since the run.
"""

INPUTS = """
Some columns describe the last inputs that the student was trained on, about 512 (with repeats if
the bank is small). Class balance is the entropy of the teacher's predicted classes; 1 means equal
shares. Own agreement is the share of these inputs on which student and teacher agree. Diversity is
the distance between nearest neighbours, relative to that among test inputs. Distance is the Fréchet
distance to the test inputs. The last two are measured in the teacher's features.
"""

TITLES = {
    "data-free": "Data-free methods",
    "transfer": "Transfer losses",
    "schemes": "Schemes with several networks, views or modalities",
    "modalities": "Sounds, texts and tables without data",
    "cross-modal": "From one modality to another",
    "untuned": "The default on different kinds of data",
    "ablation": "What each part of the default does",
}
MARK = " †"
NAMED = 3  # rows of an entry that have not run


def topic_page(name: str, tables: Sequence[dict[str, Any]], kept: Kept, more: str = "") -> str:
    """The whole of docs/results/NAME.md.

    Args:
        more: a section to put between the tables and the appendix.
    """
    own = [table for table in tables if table["page"] == name]
    text = f"# {TITLES[name]}\n\n{MADE}\n\n{READING}"
    if any("distance" in table["columns"] for table in own):
        text += INPUTS
    run = [table for table in own if any(map(kept.lines, table["rows"]))]
    text += "".join(table_section(table, kept) for table in run if not table.get("appendix")) + more
    if appendix := [table_section(table, kept, "###") for table in run if table.get("appendix")]:
        text += "\n## Appendix: what did not help\n" + "".join(appendix)
    if waiting := [f"- {t['title']}: {waits(t['rows'])}\n" for t in own if t not in run]:
        text += "\n## Not run yet\n\n" + "".join(waiting)
    return text


def table_section(table: dict[str, Any], kept: Kept, level: str = "##") -> str:
    """One table with its text, its notes, and the rows that have not run yet."""
    return f"\n{level} {table['title']}\n\n{table['text']}" + rows(table, kept, table["columns"])


def rows(table: dict[str, Any], kept: Kept, columns: Sequence[str]) -> str:
    """A table of the rows that have run; how many have not, by the entry that they are of."""
    run = [row for row in table["rows"] if kept.lines(row)]
    body = "".join(line(row, columns, kept) for row in run)
    parts = []
    if run:
        rule = "| --- |" + " --- |" * len(columns)
        parts.append(f"| run | {' | '.join(columns)} |\n{rule}\n{body}")
    if mark := marked(run, kept):
        parts.append(mark)
    if columns is table["columns"]:
        parts.append("".join(f"- {row['title']}: {row['note']}\n" for row in run if "note" in row))
        rest = waits([row for row in table["rows"] if row not in run])
        parts.append(f"Not run yet: {rest}.\n" if rest else "")
    return "".join(f"\n{part}" for part in parts if part)


def waits(rows: Sequence[dict[str, Any]]) -> str:
    """The names of rows, of many that belong together only the entry that they are of."""
    entries = Counter(row["entry"] for row in rows)
    few = [f"`{row['name']}`" for row in rows if entries[row["entry"]] <= NAMED]
    return ", ".join([*few, *(f"`{entry}` ({n})" for entry, n in entries.items() if n > NAMED)])


def line(row: dict[str, Any], columns: Sequence[str], kept: Kept) -> str:
    cells = cells_of(row, kept.results(row))
    title = row["title"] + MARK * bool(kept.changed(row))
    return f"| {title} | {' | '.join(cells[column] for column in columns)} |\n"


def marked(run: Sequence[dict[str, Any]], kept: Kept) -> str:
    """What has changed since the marked rows ran, each change with its rows; empty without any."""
    by_change: dict[tuple[str, ...], list[str]] = {}
    for row in run:
        if kept.changed(row):
            by_change.setdefault(tuple(kept.changed(row)), []).append(row["name"])
    said = []
    for what, names in by_change.items():
        files = ", ".join(w if w == COMMAND else f"`{w}`" for w in what)
        all_of_them = "all rows" if len(names) == len(run) else ", ".join(f"`{n}`" for n in names)
        said.append(f"{files} ({all_of_them})")
    return f"† Changed since the run: {'; '.join(said)}.\n" if said else ""
