"""The results of an evaluation in lines for a terminal, for ten classes or a thousand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALL = 20  # classes up to which each has its line
WORST = 10  # of more
CONFUSIONS = 10
NAME = 30  # characters of a class's name


def in_lines(found: Mapping[str, Any]) -> str:
    """Figures, the table of classes and the largest confusions of what ``evaluate`` returns."""
    return "\n\n".join(filter(None, [_figures(found), _classes(found), _confusions(found)]))


def _figures(found: Mapping[str, Any]) -> str:
    what = f"{found['architecture']}, {found['parameters']:,} parameters"
    size = f"{found['inputs']:,} test inputs of {len(found['classes'])} classes"
    rows = [
        ("network", f"{found['network']} ({what})"),
        ("data", f"{found['data']}, {size}"),
        ("accuracy", _percent(found["accuracy"]) or "not measured: the data has no labels"),
        ("accuracy of the teacher", _percent(found["teacher_accuracy"])),
        ("agreement with the teacher", _percent(found["agreement"])),
        ("calibration error (ECE)", _percent(found["ece"])),
        ("confidence against agreement", _percent(found["ece_to_teacher"])),
    ]
    width = max(len(name) for name, value in rows if value)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows if value)


def _classes(found: Mapping[str, Any]) -> str:
    measure = "accuracy" if found["reference"] == "label" else "agreement"
    seen = [row for row in found["classes"] if row["inputs"]]
    empty = len(found["classes"]) - len(seen)
    shown: Sequence[Mapping[str, Any]] = seen
    notes = [] if measure == "accuracy" else ["an input's class is the teacher's prediction"]
    if len(seen) > ALL:
        shown = sorted(seen, key=lambda row: (row[measure], -row["inputs"]))[:WORST]
        notes.append(f"the {WORST} worst of {len(seen)} by {measure}; --json OUT holds all")
    if empty:
        notes.append(f"{empty} more have no inputs")
    columns = [n for n in ("accuracy", "agreement", "confidence") if seen[0][n] is not None]
    names = [_name(row) for row in shown]
    width = max(map(len, ["class", *names]))
    head = f"{'class':<{width}}  {'inputs':>8}" + "".join(f"  {c:>10}" for c in columns)
    lines = [
        f"{name:<{width}}  {row['inputs']:>8,}" + "".join(f"  {row[c]:>10.2%}" for c in columns)
        for name, row in zip(names, shown, strict=True)
    ]
    return "\n".join([head, *lines, *(f"({note})" for note in notes)])


def _confusions(found: Mapping[str, Any]) -> str:
    classes = found["classes"]
    wrong = [entry for entry in found["confusion"] if entry[0] != entry[1]]
    if not wrong:
        return ""
    worst = sorted(wrong, key=lambda entry: -entry[2])[:CONFUSIONS]
    pairs = [(f"{_name(classes[a])} taken for {_name(classes[b])}", n, a) for a, b, n in worst]
    width = max(len(words) for words, *_ in pairs)
    lines = [f"  {words:<{width}}  {n:,} of {classes[a]['inputs']:,}" for words, n, a in pairs]
    return "\n".join(["largest confusions", *lines])


def _name(row: Mapping[str, Any]) -> str:
    """A class's name on one line."""
    name = "".join(c if c.isprintable() else "?" for c in row["name"])
    return name if len(name) <= NAME else name[: NAME - 1] + "…"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
