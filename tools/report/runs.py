"""Run directories read as data, and grouped by their settings."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.identity import NOT_IDENTITY
from engine.ownership import (
    CONFIG,
    METRICS,
    PICTURE,
    PROBES,
    RESULT,
    SOUND,
    TEXT,
    TEXT_MARK,
    VERSIONS,
    laid_out,
    mapping,
)

LARGEST = 8 << 20  # bytes; ours have a few hundred thousand at most
EARLIER = {"test/": "eval/", "student/": "loss/student/", "source/": "loss/source/"}  # of tags


@dataclass
class Run:
    """What a run directory holds, as data.

    Args:
        path: of the directory.
        settings: of its configuration, by dotted keys; lists are values.
        result: the content of result.json; empty while the run is unfinished.
        series: by tag, the (step, value) pairs of metrics.jsonl.
        picture: inputs.png, or None.
        sound: inputs.wav, or None.
        text: inputs.txt without its first line, or none.
        versions: of what it ran with.
    """

    path: Path
    settings: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    picture: bytes | None = None
    sound: bytes | None = None
    text: str = ""
    versions: dict[str, Any] = field(default_factory=dict)

    def figure(self, *keys: str) -> float | None:
        """A finite number of the result, or None where there is none."""
        node: Any = self.result
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return number(node)

    def words(self, *keys: str) -> str:
        """A text of the result; empty where there is none."""
        node: Any = self.result
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node if isinstance(node, str) else ""

    @property
    def last(self) -> int:
        """The last step for which something was written."""
        return max((points[-1][0] for points in self.series.values()), default=0)


@dataclass
class Group:
    """Runs that differ only in their seed."""

    name: str
    settings: dict[str, Any]
    runs: list[Run]

    def figures(self, *keys: str) -> list[float]:
        """One for each run that has it."""
        return [x for run in self.runs if (x := run.figure(*keys)) is not None]

    def words(self, *keys: str) -> list[str]:
        """The different texts of its runs."""
        return list(dict.fromkeys(x for run in self.runs if (x := run.words(*keys))))

    @property
    def finished(self) -> int:
        return sum(bool(run.result) for run in self.runs)


def number(value: Any) -> float | None:
    """Of a file that anybody may have written."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """The sample standard deviation; a single value has none."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def find(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Run directories among the paths and below them, each once; and what is wrong elsewhere."""
    found: dict[Path, Path] = {}
    mistakes = []
    for path in paths:
        below = [path] if _is_run(path) else []
        if not below and path.is_dir():
            below = sorted(p.parent for p in path.rglob(CONFIG) if _is_run(p.parent))
        if not below and path.name != PROBES:  # which lies beside the runs of ``runs/*``
            what = "is not a run and holds none" if path.exists() else "does not exist"
            mistakes.append(f"{path} {what}: give run directories, or folders that hold some")
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values()), mistakes


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and laid_out(mapping(path / CONFIG))


def read_runs(path: Path) -> Run:
    """A run directory; what is missing or damaged in it is left out."""
    result = _json(path / RESULT)
    return Run(
        path,
        dict(flattened(mapping(path / CONFIG))),
        result if result.get("status") == "finished" else {},
        _series(path / METRICS),
        _content(path / PICTURE, b"\x89PNG\r\n\x1a\n"),
        _content(path / SOUND, b"RIFF"),
        _text(path / TEXT),
        _json(path / VERSIONS),
    )


def flattened(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every finite value by its tag; the last line of a run that goes on may be cut."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
            step = min(int(values.pop("step")), 10**15)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
        for tag, value in values.items():
            if (x := number(value)) is not None:
                kind, slash, name = tag.partition("/")
                found.setdefault(EARLIER.get(kind + slash, kind + slash) + name, []).append(
                    (step, x)
                )
    return found


def _content(path: Path, begins: bytes) -> bytes | None:
    """Of a file of some kind, or None if it is another, or too large to show."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    content = path.read_bytes()
    return content if content.startswith(begins) else None


def _text(path: Path) -> str:
    content = _content(path, TEXT_MARK.encode()) or b""
    return content.decode(errors="replace").removeprefix(TEXT_MARK).strip()


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by all settings except the seed, in the order of the first of each."""
    groups: dict[str, Group] = {}
    for run in runs:
        asked = _asked(run.settings)
        key = repr(sorted(asked.items()))
        groups.setdefault(key, Group("", asked, [])).runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: number(run.settings.get("seed")) or 0)
    found = list(groups.values())
    for group, name in zip(found, _names([group.settings for group in found]), strict=True):
        group.name = name
    return found


def _asked(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the seed, and without those that do not change what is computed."""
    left_out = {"seed", *NOT_IDENTITY}
    if settings.get("budget") is not None:
        left_out.add("steps")  # which follow from it, and from the machine
    return {k: v for k, v in settings.items() if k not in left_out}


def _names(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The method of each, and enough settings to tell it from the others of that method."""
    methods = [str(s.get("choices.method")) for s in settings]
    names = list(methods)
    for i, own in enumerate(settings):
        others = [s for s, m in zip(settings, methods, strict=True) if m == methods[i] and s != own]
        keys = sorted(own, key=rank)
        for key in keys[: len(keys) if others else 0]:
            apart = [s for s in others if s.get(key) != own[key]]
            if apart and len(names[i]) < 60:
                names[i] += f", {key.removeprefix('choices.')}={own[key]!s:.40}"
                others = [s for s in others if s not in apart]
    twice = {name for name in names if names.count(name) > 1}
    return [f"{name} ({i + 1})" if name in twice else name for i, name in enumerate(names)]


def rank(key: str) -> int:
    """The rank of a setting in names of runs: those that are usually varied come first."""
    if key.startswith("choices."):
        return 0
    return 1 if key in ("steps", "batch_size") or key.endswith((".lr", ".weight")) else 2
