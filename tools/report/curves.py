"""Curves as SVG that is part of a page: a thin line for each seed, a thick one for their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.report.markup import clean

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 18, 10, 34  # margins
MOST = 300  # points of a line, which is as many as can be seen
COLOURS = 8  # of the page's style: .c0 to .c7; then the same again, dashed


@dataclass
class Line:
    """The curves of a group.

    Args:
        index: of the group, for its colour.
        name: of the group.
        seeds: for each run, its points by their step.
    """

    index: int
    name: str
    seeds: list[dict[int, Point]]


def chart(title: str, lines: Sequence[Line], x_name: str, percent: bool = False) -> str:
    """An SVG element; empty if there are not two points to join."""
    points = [p for line in lines for seed in line.seeds for p in seed.values()]
    if not points:
        return ""
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    if left == right:
        return ""
    x_ticks = [x for x in _ticks(left, right) if left <= x <= right]
    y_ticks = _ticks(*_limits([y for _, y in points]))
    low, high = y_ticks[0], y_ticks[-1]

    def place(point: Point) -> Point:
        x = (point[0] - left) / (right - left)
        y = (point[1] - low) / (high - low)
        return (
            LEFT + x * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM),
        )

    def text(x: float, y: float, anchor: str, words: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'

    grid = []
    for y in y_ticks:
        at = place((left, y))[1]
        grid.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        grid.append(text(LEFT - 5, at + 4, "end", _percent(y) if percent else f"{y:g}"))
    for x in x_ticks:
        grid.append(text(place((x, low))[0], HEIGHT - BOTTOM + 15, "middle", _short(x)))
    grid.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "middle", clean(x_name)))
    drawn = "".join(_drawn(line, place) for line in lines)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{clean(title)}">'
        f"{''.join(grid)}{drawn}</svg>"
    )


def _drawn(line: Line, place: Callable[[Point], Point]) -> str:
    """Thin lines for seeds, if there are several, and a thick one for the mean."""
    kind = f"c{line.index % COLOURS}" + (" dashed" if line.index >= COLOURS else "")
    thin = line.seeds if len(line.seeds) > 1 else []
    curves = [("thin", list(seed.values())) for seed in thin] + [("mean", mean_curve(line.seeds))]
    return "".join(
        f'<polyline class="{kind} {weight}" points="'
        + " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, _visible(thinned(curve))))
        + f'"><title>{clean(line.name)}</title></polyline>'
        for weight, curve in curves
        if curve
    )


def _visible(curve: list[Point]) -> list[Point]:
    """A single point twice, which is drawn as a dot."""
    return curve * 2 if len(curve) == 1 else curve


def mean_curve(seeds: Sequence[dict[int, Point]]) -> list[Point]:
    """At each step that all seeds have, the mean of their points."""
    shared = [step for step in seeds[0] if all(step in seed for seed in seeds)] if seeds else []
    return [_middle([seed[step] for seed in seeds]) for step in shared]


def thinned(curve: Sequence[Point]) -> list[Point]:
    """At most 300 points, each the mean of neighbouring ones."""
    size = math.ceil(len(curve) / MOST) or 1
    return [_middle(curve[i : i + size]) for i in range(0, len(curve), size)]


def _middle(points: Sequence[Point]) -> Point:
    return (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # a flat line has room on both sides
        return low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Round values a few steps apart, from the last one below the range to the first above."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _short(value: float) -> str:
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"
