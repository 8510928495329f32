"""The page of a report: self-contained HTML and CSS without a script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime

from tools.report.curves import COLOURS, Line, chart
from tools.report.markup import (
    NONE,
    STYLE,
    averaged,
    clean,
    count,
    duration,
    extent,
    folded,
    html_table,
    mean,
    percent,
    single,
    wrapped,
)
from tools.report.runs import Group, Run, rank

MARK = "<!doctype html>\n<!-- Written by python -m tools.report, which may write it again. -->\n"
# The second line of defence, beside escaping: a browser loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
TITLES = {"eval/accuracy": "accuracy", "eval/agreement": "agreement with the teacher"}
TITLES |= {"eval/ece": "calibration error (ECE)"}
MANY = 16  # settings that are shown at once, at most
PARTS = ("timing", "synthesis", "distillation", "evaluation")


def report_page(groups: Sequence[Group]) -> str:
    """The whole page as text that UTF-8 can encode."""
    runs = [run for group in groups for run in group.runs]
    title = f"{count(len(runs), 'run')} in {count(len(groups), 'group')}"
    made = datetime.now().strftime("%Y-%m-%d %H:%M")
    sections = [
        ("Results", _results(groups)),
        ("Settings", _settings(groups)),
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
        f"<h1>{title}</h1><p class=quiet>Written {made}. Runs that differ only in their seed are "
        f"one group.</p>\n{body}</main></body></html>\n"
    )


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
                averaged(group.figures("student", "accuracy"), percent, lowest=True),
                averaged(group.figures("student", "agreement"), percent, lowest=True),
                averaged(group.figures("student", "ece"), percent),
                averaged(single(group.figures("teacher", "accuracy")), percent),
                extent(group.figures("student", "parameters")),
                extent(group.figures("cost", "steps")),
                averaged(group.figures("cost", "wall_seconds"), duration),
                extent(group.figures("cost", "images_synthesized")),
                extent(group.figures("cost", "teacher_queries")),
                ", ".join(map(clean, group.words("cost", "device"))) or NONE,
            ]
        )
    note = "<p class=quiet>Mean ± sample standard deviation over the seeds, and the lowest.</p>"
    return html_table(head, rows) + note + _measured(groups) + _unfinished(groups)


def _measured(groups: Sequence[Group]) -> str:
    """On which inputs the runs were measured; figures on different ones cannot be compared."""
    on: dict[str, list[str]] = {}
    for group in groups:
        for words in group.words("measured_on", "what"):
            on.setdefault(words, []).append(clean(group.name))
    if len(on) < 2:
        return "".join(f"<p>Measured on {clean(words)}.</p>" for words in on)
    items = "".join(f"<li>{'; '.join(names)}: {clean(words)}" for words, names in on.items())
    return (
        "<p class=warning>Not all groups were measured on the same inputs; figures on different "
        f"inputs cannot be compared.</p><ul>{items}</ul>"
    )


def _unfinished(groups: Sequence[Group]) -> str:
    open_ = [run for group in groups for run in group.runs if not run.result]
    items = "".join(f"<li><code>{clean(str(run.path))}</code>: {_state(run)}" for run in open_)
    return items and f"<p class=warning>Unfinished, and not in the table:</p><ul>{items}</ul>"


def _state(run: Run) -> str:
    if run.result:
        return "finished"
    words = f"unfinished, at step {run.last:,} of {clean(run.settings.get('steps'))}"
    for name in ("accuracy", "agreement"):
        if measured := run.series.get(f"eval/{name}"):
            step, value = measured[-1]
            return f"{words}; {name} at step {step:,}: {percent(value)}"
    return words


def _settings(groups: Sequence[Group]) -> str:
    """A column for each group where they differ; shared ones are folded away.

    Methods differ in many: then only the settings that are usually varied are open at first.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    keys.sort(key=rank)
    differing = [key for key in keys if len({repr(_asked(g, key)) for g in groups}) > 1]
    few = len(differing) <= MANY
    shown = [key for key in differing if few or rank(key) < 2 or "." not in key]
    rows = {key: [wrapped(key), *(_asked(g, key) for g in groups)] for key in differing}
    names = [_key(i, group) for i, group in enumerate(groups)]
    content = html_table(["setting", *names], [rows.pop(key) for key in shown])
    if not shown:
        content = "<p>The groups do not differ in any setting.</p>"
    if rows:
        words = f"{count(len(rows), 'more setting')} in which they differ"
        content += folded(words, html_table(["setting", *names], rows.values()))
    shared = [key for key in keys if key not in differing]
    same = html_table(
        ["setting", "value"], [[wrapped(key), _asked(groups[0], key)] for key in shared]
    )
    return content + folded(f"{count(len(shared), 'setting')} that all share", same)


def _asked(group: Group, key: str) -> str:
    return wrapped(group.settings[key]) if key in group.settings else NONE


def _curves(groups: Sequence[Group]) -> str:
    """Curves by step or by time, as the reader chooses; by step at first."""
    tags = sorted({tag for group in groups for run in group.runs for tag in run.series})
    known = [tag for tag in tags if tag.startswith("eval/")]
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
    more = folded("What was synthesized", _charts(found, groups))
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
            title = f"<figcaption>{clean(TITLES.get(tag, tag))}</figcaption>"
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
    shown: list[str] = []
    others: list[str] = []
    for i, group in enumerate(groups):
        what = "synthesized" if group.settings.get("data_free") is True else "real"
        with_one = [run for run in group.runs if run.picture]
        for n, run in enumerate(with_one):
            data = base64.b64encode(run.picture or b"").decode()
            caption = f"{_key(i, group)}, seed {clean(run.settings.get('seed'))}: {what}"
            image = f'<img alt="{clean(group.name)}" src="data:image/png;base64,{data}">'
            figure = (
                f"<figure>{image}{_heard_or_read(run)}<figcaption>{caption}</figcaption></figure>"
            )
            (others if n else shown).append(figure)
    if not shown:
        return "<p>No run has a picture yet.</p>"
    rest = folded("Other seeds", f"<div class=pictures>{''.join(others)}</div>")
    return (
        "<p>The last inputs that each student learned from.</p>"
        f"<div class=pictures>{''.join(shown)}</div>" + (rest if others else "")
    )


def _heard_or_read(run: Run) -> str:
    """What belongs to a picture of sounds or texts."""
    found = ""
    if run.sound:
        data = base64.b64encode(run.sound).decode()
        found = f'<audio controls src="data:audio/wav;base64,{data}"></audio>'
    lines = [clean(line) for line in run.text.splitlines()]
    return found + (folded("As text", f"<pre>{chr(10).join(lines)}</pre>") if lines else "")


def _costs(groups: Sequence[Group]) -> str:
    named = [f"<b class=part{n}></b>&nbsp;{part}" for n, part in enumerate([*PARTS, "other"])]
    head = ["group", "whole", *named, "share of each part", "peak memory"]
    head += ["real training inputs read", "precision"]
    rows = []
    for i, group in enumerate(groups):
        parts = [mean(group.figures("cost", f"{part}_seconds")) for part in PARTS]
        wall = mean(group.figures("cost", "wall_seconds"))
        other = max(0.0, wall - sum(parts[1:]))  # timing comes before
        seconds = [wall + parts[0], *parts, other]
        times = [duration(x) if group.finished else NONE for x in seconds]
        memory = group.figures("cost", "peak_memory_bytes")
        peak = f"{max(memory) / 2**30:.2f} GiB" if memory else NONE
        read = extent(group.figures("cost", "real_training_inputs_read"))
        precision = ", ".join(map(clean, group.words("cost", "precision"))) or NONE
        rows.append([_key(i, group), *times, _bar([*parts, other]), peak, read, precision])
    note = (
        "Means over the seeds, and the most memory of any. Timing comes before a run, for its plan."
    )
    return html_table(head, rows) + f"<p class=quiet>{note}</p>"


def _bar(seconds: Sequence[float]) -> str:
    whole = sum(seconds)
    named = zip([*PARTS, "other"], seconds, strict=True)
    pieces = "".join(
        f'<i class=part{n} style="width:{100 * x / whole:.1f}%" title="{name} {duration(x)}"></i>'
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
            path = f"<code>{wrapped(str(run.path))}</code>"
            rows.append([path, _key(i, group), seed, _state(run), versions or NONE])
    return html_table(["folder", "group", "seed", "state", "versions"], rows)


def _key(index: int, group: Group) -> str:
    """A group's name beside its colour."""
    kind = f"k{index % COLOURS}" + (" gap" if index >= COLOURS else "")  # whose line is dashed
    return f'<span class=name><b class="{kind}"></b>{wrapped(group.name)}</span>'
