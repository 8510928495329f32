"""What there is to choose from, read from the configuration files: `python -m engine.catalogue`.

Prints docs/methods.md. Nothing is listed by hand: a new YAML is in the list.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from core.check import parameters_of
from engine.config import ROOT

HEAD = """# Methods and losses

Made by `python -m engine.catalogue > docs/methods.md` from `configs/`; never edited.

## Methods

`method=NAME`. What a method is, is its file in `configs/method/`; the settings of its paper, where
they differ, are in `configs/experiment/`.

| method | data | what it does |
| --- | --- | --- |
"""

TERMS = """
## Transfer losses

`loss=NAME`, or `loss=[NAME,NAME]`, beside the losses of the method. `distiller.losses.NAME.weight`,
`.schedule`, `.taps` and the arguments under `.loss` change them. Where no taps are named, a loss
reads logits alone; `stages` is every stage that both networks have, `stage-1` the last one.

| loss | paper | weight | taps | what it is |
| --- | --- | --- | --- | --- |
"""


@dataclass
class Loss:
    """One entry of a file under ``configs/loss``."""

    name: str
    paper: str
    weight: str
    taps: str
    summary: str


def losses(root: Path = ROOT) -> Iterator[Loss]:
    """Every transfer loss that ``loss=`` can add."""
    for path in sorted((root / "loss").glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text()).values():
            weight = f"{entry.get('weight', 1.0):g}"
            if schedule := entry.get("schedule"):
                weight += f", {_words(schedule)}"
            target = resolve_name(entry["loss"]["_target_"])
            summary = (inspect.getdoc(target) or "").partition("\n\n")[0].replace("\n", " ")
            yield Loss(path.stem, comment(path), weight, _taps(entry, target), summary)


def methods(root: Path = ROOT) -> Iterator[tuple[str, str, str]]:
    """Name, data and description of every method."""
    for path in sorted((root / "method").glob("*.yaml")):
        node: dict[str, Any] = yaml.safe_load(path.read_text())
        while "data_free" not in node:  # as its parent has it
            node = yaml.safe_load((root / "method" / f"{node['defaults'][0]}.yaml").read_text())
        yield path.stem, "none" if node["data_free"] else "real", comment(path)


def comment(path: Path) -> str:
    """The comment at the top of a file, without the line for Hydra."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def methods_page() -> str:
    """The whole of docs/methods.md."""
    rows = [f"| `{name}` | {data} | {_cell(text)} |\n" for name, data, text in methods()]
    listed = [
        f"| `{t.name}` | {_cell(t.paper)} | {t.weight} | {t.taps} | {_cell(t.summary)} |\n"
        for t in losses()
    ]
    return HEAD + "".join(rows) + TERMS + "".join(listed)


def _cell(text: str) -> str:
    """Text that a bar does not break out of its cell."""
    return text.replace("|", "\\|").replace("``", "`")


def _taps(entry: dict[str, Any], target: Any) -> str:
    given = entry.get("taps") or entry["loss"].get("taps")
    if given is None:
        parameter = parameters_of(target)[0].get("taps")
        given = parameter.default if parameter else ()
    return ", ".join(t if isinstance(t, str) else f"{t['student']}: {t['teacher']}" for t in given)


def _words(schedule: dict[str, Any]) -> str:
    name = schedule["_target_"].rpartition(".")[2]
    return f"{name}({', '.join(f'{k}={v}' for k, v in schedule.items() if k != '_target_')})"


if __name__ == "__main__":
    print(methods_page(), end="")
