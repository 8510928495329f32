"""Runs and groups of them, as a report compares them, and the figures of a group."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """What a run directory holds, as data.

    Args:
        path: of the directory.
        settings: of its configuration, by dotted keys; lists are values.
        result: the content of result.json; empty while the run is unfinished.
        series: by tag, the (step, value) pairs of metrics.jsonl.
        picture: inputs.png, or None.
        versions: of what it ran with.
    """

    path: Path
    settings: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    picture: bytes | None = None
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
        """The last step that something was written of."""
        return max((points[-1][0] for points in self.series.values()), default=0)


@dataclass
class Group:
    """Runs that differ in their seed alone."""

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
    return float(value) if math.isfinite(value) and abs(value) < 1e300 else None


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """The sample standard deviation, which a single value has not."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
