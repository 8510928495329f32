"""The elements of a report: text that is safe in HTML, tables, figures, and the page's style.

The style is for light and dark, for a desk and a phone.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from tools.report.runs import mean_and_deviation

NONE = "-"
_COLOURS = {  # in light, in dark: eight that colour-blind readers can tell apart too
    "light": ["#0072b2", "#d55e00", "#009e73", "#b0579a", "#8a6d00", "#3a9bdc", "#555", "#a3001b"],
    "dark": ["#56a8e0", "#ff8a3d", "#2fc79b", "#e08fc6", "#e3c54a", "#8fd0ff", "#bbb", "#ff6b7f"],
}


def _variables(mode: str) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(_COLOURS[mode]))


STYLE = (
    f""":root {{ color-scheme: light dark; --back:#fff; --text:#1b1e23; --quiet:#5c6470;
  --rule:#dde1e7; --soft:#f5f6f8; --warn:#8a4b00; {_variables("light")} }}
@media (prefers-color-scheme: dark) {{ :root {{ --back:#15171b; --text:#e4e7ec; --quiet:#9aa3b0;
  --rule:#343a43; --soft:#1e2127; --warn:#ffb454; {_variables("dark")} }} }}
"""
    + "".join(
        f".c{i}{{stroke:var(--c{i})}} .k{i},.part{7 - i}{{background:var(--c{i})}}\n"
        for i in range(8)
    )
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 16px; }
h1 { font-size: 24px; margin: 8px 0 0; } h2 { font-size: 19px; margin: 32px 0 8px; }
p { margin: 8px 0; } ul { margin: 4px 0; padding-left: 20px; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: 13px; } .warning { color: var(--warn); }
.box { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; margin: 8px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: left; vertical-align: top; white-space: nowrap;
  border-top: 1px solid var(--rule); }
td { max-width: 360px; white-space: normal; min-width: 84px; }
thead th { border-top: 0; background: var(--soft); white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--back);
  min-width: 150px; max-width: 300px; white-space: normal; }
small { color: var(--quiet); white-space: nowrap; }
summary { cursor: pointer; padding: 6px 0; }
code { font-size: 12.5px; }
.name b, thead b { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 6px; }
.gap { background-image: linear-gradient(90deg, transparent 35%, var(--back) 35% 65%,
  transparent 65%); }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 18px; }
.charts, .pictures { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { font-size: 13px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--quiet); } .grid { stroke: var(--rule); fill: none; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.thin { stroke-width: 1; opacity: 0.45; } .dashed { stroke-dasharray: 5 3; }
img { width: 100%; max-width: 530px; height: auto; image-rendering: pixelated; display: block; }
audio { width: 100%; max-width: 530px; } pre { overflow-x: auto; font-size: 12.5px; }
.by-time { display: none; } #by-time:checked ~ .charts .by-time,
#by-time:checked ~ details .by-time { display: block; }
#by-time:checked ~ .charts .by-step, #by-time:checked ~ details .by-step { display: none; }
label { margin: 0 14px 0 4px; }
.bar { display: flex; width: 160px; height: 14px; margin-top: 3px; border-radius: 3px;
  overflow: hidden; background: var(--soft); }
@media (max-width: 600px) { main { padding: 12px; } tbody th { min-width: 120px; } }
"""
)


def clean(value: Any) -> str:
    """Any value as text that is safe in an element and in an attribute's quotes."""
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, skipkeys=True, default=str)
    )
    return html.escape("".join(c if c.isprintable() else "?" for c in text))


def wrapped(value: Any) -> str:
    """The same, with line breaks allowed after ``.,/_``, but not within a number."""
    return re.sub(r"([.,/_])(?!\d)", r"\1<wbr>", clean(value))


def html_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in a box that scrolls if wider than the page; the first column names the row."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    box = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class=box tabindex="0"><table>{box}</table></div>'


def folded(words: str, content: str) -> str:
    return f"<details><summary>{words}</summary>{content}</details>"


def averaged(values: list[float], written: Callable[[float], str], lowest: bool = False) -> str:
    if not values:
        return NONE
    middle, deviation = mean_and_deviation(values)
    if deviation is None:
        return written(middle)
    least = f"<br><small>lowest {written(min(values))}</small>" if lowest else ""
    return f"{written(middle)} ± {written(deviation)}{least}"


def extent(values: list[float]) -> str:
    ends = [f"{value:,.0f}" for value in (min(values), max(values))] if values else [NONE]
    return " to ".join(dict.fromkeys(ends))


def single(values: list[float]) -> list[float]:
    """Of values that are all the same, such as those of one teacher, a single one."""
    return values[:1] if len(set(values)) == 1 else values


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def count(n: int, name: str) -> str:
    return f"{n} {name}{'' if n == 1 else 's'}"
