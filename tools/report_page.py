"""The page of a report: HTML and CSS without a script, which takes nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from tools.report_curves import COLOURS, Line, chart
from tools.report_runs import Group, Run, mean_and_deviation
from tools.report_style import STYLE

MARK = "<!doctype html>\n<!-- Written by python -m tools.report, which may write it again. -->\n"
# The second line of defence, beside escaping: a browser loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PARTS = ("timing", "synthesis", "distillation", "evaluation")
NONE = "-"
Cell = str  # of HTML


def page(groups: Sequence[Group]) -> str:
    """The whole page as text that UTF-8 can say."""
    runs = [run for group in groups for run in group.runs]
    title = f"{_count(len(runs), 'run')} in {_count(len(groups), 'group')}"
    made = datetime.now().strftime("%Y-%m-%d %H:%M")
    sections = [
        ("Results", _results(groups)),
        ("What was asked", _settings(groups)),
        ("Curves", _curves(groups)),
        ("Pictures", _pictures(groups)),
        ("Costs", _costs(groups)),
        ("Runs", _runs(groups)),
    ]
    body = "".join(f"<section><h2>{name}</h2>{content}</section>\n" for name, content in sections)
    return (
        f'{MARK}<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>"
        f"<h1>{title}</h1><p class=quiet>Written {made}. Runs that differ in their seed alone are "
        f"one group.</p>\n{body}</main></body></html>\n"
    )


def clean(value: Any) -> str:
    """Any value as text that is safe in an element and in an attribute's quotes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return html.escape("".join(c if c.isprintable() else "?" for c in text))


def table(head: Iterable[Cell], rows: Iterable[Iterable[Cell]]) -> str:
    """In a box that scrolls where it is wider than the page; the first column names the row."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    box = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class=box tabindex="0"><table>{box}</table></div>'


def _results(groups: Sequence[Group]) -> str:
    head = ["group", "seeds", "accuracy", "agreement", "ECE", "teacher's accuracy", "parameters"]
    head += ["steps", "time", "images synthesized", "teacher queries", "device"]
    rows = []
    for i, group in enumerate(groups):
        seeds = str(len(group.runs))
        if group.finished < len(group.runs):
            seeds = f"{group.finished} finished of {seeds}"
        rows.append(
            [
                _key(i, group),
                seeds,
                _spread(group.figures("student", "accuracy"), _percent, lowest=True),
                _spread(group.figures("student", "agreement"), _percent, lowest=True),
                _spread(group.figures("student", "ece"), _percent),
                _spread(group.figures("teacher", "accuracy"), _percent),
                _range(group.figures("student", "parameters")),
                _range(group.figures("cost", "steps")),
                _spread(group.figures("cost", "wall_seconds"), _duration),
                _range(group.figures("cost", "images_synthesized")),
                _range(group.figures("cost", "teacher_queries")),
                ", ".join(map(clean, group.words("cost", "device"))) or NONE,
            ]
        )
    note = "<p class=quiet>Mean ± sample standard deviation over the seeds, and the lowest.</p>"
    return table(head, rows) + note + _measured(groups) + _unfinished(groups)


def _measured(groups: Sequence[Group]) -> str:
    """On which inputs; figures of different ones do not compare."""
    on: dict[str, list[str]] = {}
    for group in groups:
        for words in group.words("measured_on", "what"):
            on.setdefault(words, []).append(clean(group.name))
    if len(on) < 2:
        return "".join(f"<p>Measured on {clean(words)}.</p>" for words in on)
    items = "".join(f"<li>{'; '.join(names)}: {clean(words)}" for words, names in on.items())
    return (
        "<p class=warning>Not all groups were measured on the same inputs; figures on different "
        f"inputs do not compare.</p><ul>{items}</ul>"
    )


def _unfinished(groups: Sequence[Group]) -> str:
    open_ = [run for group in groups for run in group.runs if not run.result]
    items = "".join(f"<li><code>{clean(str(run.path))}</code>: {_state(run)}" for run in open_)
    return items and f"<p class=warning>Unfinished, and not in the table:</p><ul>{items}</ul>"


def _state(run: Run) -> str:
    if run.result:
        return "finished"
    return f"unfinished, at step {run.last:,} of {clean(run.settings.get('steps'))}"


def _settings(groups: Sequence[Group]) -> str:
    """A column for each group where they differ; what all share is folded away."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    keys.sort(key=lambda key: not key.startswith("choices."))
    missing = object()
    shared, differing = [], []
    for key in keys:
        values = [group.settings.get(key, missing) for group in groups]
        if all(value == values[0] for value in values):
            shared.append([clean(key), clean(values[0])])
        else:
            cells = [NONE if value is missing else clean(value) for value in values]
            differing.append([clean(key), *cells])
    names = [_key(i, group) for i, group in enumerate(groups)]
    shown = table(["setting", *names], differing) if differing else "<p>There is one group.</p>"
    return (
        f"{shown}<details><summary>{_count(len(shared), 'setting')} that all share</summary>"
        f"{table(['setting', 'value'], shared)}</details>"
    )


def _curves(groups: Sequence[Group]) -> str:
    """By step and by time, of which the reader chooses one; without a choice, by step."""
    tags = sorted({tag for group in groups for run in group.runs for tag in run.series})
    known = [tag for tag in ("eval/accuracy", "eval/agreement", "eval/ece") if tag in tags]
    known += [tag for tag in tags if tag.startswith("loss/student/")]
    known += [tag for tag in tags if tag.startswith("loss/") and tag not in known]
    found = [tag for tag in tags if tag.startswith("synthesized/")]
    if not known:
        return "<p>No run has metrics.</p>"
    legend = "".join(f"<li>{_key(i, group)}" for i, group in enumerate(groups))
    timed = any("system/seconds" in run.series for group in groups for run in group.runs)
    choice = "".join(
        f"<input type=radio name=by id=by-{x} {'checked' if x == 'step' else ''}>"
        f"<label for=by-{x}>by {x}</label>"
        for x in ("step", "time")
    )
    more = f"<details><summary>What was synthesized</summary>{_charts(found, groups)}</details>"
    return (
        f"{choice if timed else ''}<ul class=legend>{legend}</ul>"
        "<p class=quiet>Thin: a seed. Thick: their mean at the steps that all have.</p>"
        f"{_charts(known, groups)}{more if found else ''}"
    )


def _charts(tags: Sequence[str], groups: Sequence[Group]) -> str:
    figures = []
    for tag in tags:
        percent = tag.startswith("eval/") or tag.endswith("/agreement")
        for x, name in (("step", "step"), ("time", "seconds")):
            lines = [Line(i, g.name, _points(g, tag, x)) for i, g in enumerate(groups)]
            drawn = chart(tag, lines, name, percent)
            title = f"<figcaption>{clean(tag.removeprefix('loss/'))}</figcaption>"
            if drawn:
                figures.append(f"<figure class=by-{x}>{title}{drawn}</figure>")
    return f"<div class=charts>{''.join(figures)}</div>"


def _points(group: Group, tag: str, x: str) -> list[dict[int, tuple[float, float]]]:
    """Of each run that has the tag; by time, where it is known."""
    curves = []
    for run in group.runs:
        seconds = dict(run.series.get("system/seconds", []))
        places = [(s, float(s) if x == "step" else seconds.get(s), y) for s, y in _of(run, tag)]
        curves.append({step: (place, y) for step, place, y in places if place is not None})
    return [curve for curve in curves if curve]


def _of(run: Run, tag: str) -> list[tuple[int, float]]:
    return run.series.get(tag, [])


def _pictures(groups: Sequence[Group]) -> str:
    """The first picture of each group; those of its other seeds are folded away."""
    shown, folded = [], []
    for i, group in enumerate(groups):
        what = "synthesized" if group.settings.get("data_free") is True else "real"
        with_one = [run for run in group.runs if run.picture]
        for n, run in enumerate(with_one):
            data = base64.b64encode(run.picture or b"").decode()
            caption = f"{_key(i, group)}, seed {clean(run.settings.get('seed'))}: {what}"
            image = f'<img alt="{clean(group.name)}" src="data:image/png;base64,{data}">'
            figure = f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
            (folded if n else shown).append(figure)
    if not shown:
        return "<p>No run has a picture yet.</p>"
    rest = f"<div class=pictures>{''.join(folded)}</div>"
    return (
        "<p>The last inputs that each student learned from.</p>"
        f"<div class=pictures>{''.join(shown)}</div>"
        + (f"<details><summary>Other seeds</summary>{rest}</details>" if folded else "")
    )


def _costs(groups: Sequence[Group]) -> str:
    head = ["group", "whole", *PARTS, "other", "share of each part", "peak memory"]
    head += ["real training inputs read", "precision"]
    rows = []
    for i, group in enumerate(groups):
        parts = [_mean(group.figures("cost", f"{part}_seconds")) for part in PARTS]
        wall = _mean(group.figures("cost", "wall_seconds"))
        other = max(0.0, wall - sum(parts[1:]))  # timing comes before
        seconds = [wall + parts[0], *parts, other]
        times = [_duration(x) if group.finished else NONE for x in seconds]
        memory = group.figures("cost", "peak_memory_bytes")
        peak = f"{max(memory) / 2**30:.2f} GiB" if memory else NONE
        read = _range(group.figures("cost", "real_training_inputs_read"))
        precision = ", ".join(map(clean, group.words("cost", "precision"))) or NONE
        rows.append([_key(i, group), *times, _bar([*parts, other]), peak, read, precision])
    note = "Means over the seeds; memory is the most of any. Timing fits a run to its budget."
    return table(head, rows) + f"<p class=quiet>{note}</p>"


def _bar(seconds: Sequence[float]) -> str:
    whole = sum(seconds)
    named = zip([*PARTS, "other"], seconds, strict=True)
    pieces = "".join(
        f'<i class=part{n} style="width:{100 * x / whole:.1f}%" title="{name} {_duration(x)}"></i>'
        for n, (name, x) in enumerate(named)
        if whole and x / whole >= 0.001
    )
    return f"<span class=bar>{pieces}</span>"


def _runs(groups: Sequence[Group]) -> str:
    rows = []
    for i, group in enumerate(groups):
        for run in group.runs:
            versions = ", ".join(f"{clean(k)} {clean(v)}" for k, v in run.versions.items())
            seed = clean(run.settings.get("seed"))
            path = f"<code>{clean(str(run.path))}</code>"
            rows.append([path, _key(i, group), seed, _state(run), versions or NONE])
    return table(["folder", "group", "seed", "state", "versions"], rows)


def _key(index: int, group: Group) -> str:
    """A group's name beside its colour."""
    return f"<span class=name><b class=k{index % COLOURS}></b>{clean(group.name)}</span>"


def _spread(values: list[float], written: Callable[[float], str], lowest: bool = False) -> str:
    if not values:
        return NONE
    middle, deviation = mean_and_deviation(values)
    if deviation is None:
        return written(middle)
    least = f"<br><small>lowest {written(min(values))}</small>" if lowest else ""
    return f"{written(middle)} ± {written(deviation)}{least}"


def _range(values: list[float]) -> str:
    ends = [f"{value:,.0f}" for value in (min(values), max(values))] if values else [NONE]
    return " to ".join(dict.fromkeys(ends))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _count(n: int, name: str) -> str:
    return f"{n} {name}{'' if n == 1 else 's'}"
