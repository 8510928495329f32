"""The page docs/results.md, from the results that benchmarks/results/ keeps."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.records import recorded

HEAD = """# Results

Made by `python benchmarks/reproduce.py --table` from the `result.json` of each run, which
`benchmarks/results/` keeps; never edited. A row whose command has changed since, or a file under
`configs/` that it chooses, counts as not run. `python benchmarks/reproduce.py --list` prints the
command of every row.

Accuracy is that of the last step, on the whole test split. With several seeds: mean ± standard
deviation, and the lowest. Time is the student's run, synthesis and evaluation included and the
teacher's training not.

Of the 512 or so inputs that the student was given last, with repeats where a bank is small: class
balance is the entropy of the teacher's classes, 1 for equal shares; own agreement, how often
student and teacher agree on these very inputs; diversity, how far nearest neighbours are apart, 1
as far as among test inputs; distance, the Fréchet distance to the test inputs; the last two in the
teacher's own features.
"""

STEPS = """
## Time of a step

`python benchmarks/step_time.py --json benchmarks/results/step_time_fp32.json`, and with
`precision=bf16`: one cycle is a generator step and five student steps. Median, minimum and maximum.

| cycle | generator step | student step | images/s | peak memory | where and what |
| --- | --- | --- | --- | --- | --- |
"""

PLAIN = """
`python benchmarks/plain_step.py --json benchmarks/results/plain_step_fp32.json`: the same cycle and
that of a plain loop, in turn. Ratio of the two, below 1 where Reverie is faster.

| Reverie | plain loop | ratio | where and what |
| --- | --- | --- | --- |
"""

TERMS = """
## What a loss adds to a step

`python benchmarks/loss_time.py --json benchmarks/results/loss_time_fp32.json`: a student step of
plain KD and one with the loss beside it, in turn. Ratio of the two: median, minimum and maximum.
`dgkd` has no assistant here: each costs a forward pass more.
"""

# Columns on the inputs that were synthesized last, by their key in a result.
DIAGNOSTICS = {
    "class balance": "class_balance",
    "own agreement": "agreement",
    "diversity": "diversity",
    "distance": "frechet_distance",
}

TERM_COLUMNS = "| loss | KD alone | with the loss | ratio |\n| --- | --- | --- | --- |\n"


def page(tables: list[dict[str, Any]], records: Path) -> str:
    """The whole of docs/results.md, which says of what has not run that it has not."""

    def timed(kind: str, line: Callable[[dict[str, Any]], str], missing: str) -> str:
        files = sorted(records.glob(f"{kind}*.json"))
        return "".join(line(json.loads(file.read_text())) for file in files) or missing

    steps = timed("step_time", step_line, "| not run yet | | | | | |\n")
    beside = timed("plain_step", plain_line, "| not run yet | | | |\n")
    added = timed("loss_time", loss_table, "\nNot run yet.\n")
    tested = "".join(section(table, records) for table in tables)
    return (
        HEAD
        + tested
        + plot.section(agreement(records))
        + STEPS
        + steps
        + PLAIN
        + beside
        + TERMS
        + added
    )


def agreement(records: Path) -> list[dict[str, Any]]:
    """What benchmarks/agreement.py found; empty where it has not run."""
    file = records / "agreement.json"
    return json.loads(file.read_text()) if file.exists() else []


def section(table: dict[str, Any], records: Path) -> str:
    """One table of the rows that have run, and how many have not, by the entry that they are of."""
    columns = table["columns"]
    run = [row for row in table["rows"] if recorded(row, records)]
    body = "".join(line(row, columns, records) for row in run)
    notes = "".join(f"- {row['title']}: {row['note']}\n" for row in run if "note" in row)
    missing = Counter(row["entry"] for row in table["rows"] if row not in run)
    rest = ", ".join(f"`{entry}`" + f" ({n})" * (n > 1) for entry, n in missing.items())
    parts = [f"## {table['title']}\n\n{table['text']}\n"]
    if run:
        rule = "| --- |" + " --- |" * len(columns)
        parts.append(f"| run | {' | '.join(columns)} |\n{rule}\n{body}")
    parts += [notes] if notes else []
    parts += [f"Not run yet: {rest}.\n"] if rest else []
    return "\n" + "\n".join(parts)


def step_line(figure: dict[str, Any]) -> str:
    """One file of benchmarks/step_time.py."""
    parts = ("cycle_seconds", "generator_step_seconds", "student_step_seconds")
    cells = [median(figure[part], " s") for part in parts]
    cells += [str(figure["images_per_second"]), f"{figure['peak_memory_bytes'] / 2**20:.0f} MiB"]
    return f"| {' | '.join(cells)} | {where(figure)} |\n"


def plain_line(figure: dict[str, Any]) -> str:
    """One file of benchmarks/plain_step.py."""
    cells = [median(figure[part], " s") for part in ("cycle_seconds", "plain_seconds")]
    return f"| {' | '.join(cells)} | {median(figure['ratio'])} | {where(figure)} |\n"


def median(values: dict[str, float], unit: str = "") -> str:
    """With the least and the largest value."""
    return f"{values['median']:.3f}{unit} ({values['min']:.3f}-{values['max']:.3f})"


def loss_table(figure: dict[str, Any]) -> str:
    """One file of benchmarks/loss_time.py."""
    body = ""
    for name, loss in figure["losses"].items():
        ratio = "{median:.2f} ({min:.2f}-{max:.2f})".format(**loss["ratio"])
        times = [f"{1000 * loss[key]:.0f} ms" for key in ("kd_seconds", "seconds")]
        body += f"| `{name}` | {' | '.join(times)} | {ratio} |\n"
    return f"\n{where(figure)}\n\n{TERM_COLUMNS}{body}"


def where(figure: dict[str, Any]) -> str:
    device = f"{figure['device']}, {figure['threads']} threads, torch {figure['torch']}"
    return f"{device}: {figure['overrides']}"


def line(row: dict[str, Any], columns: list[str], records: Path) -> str:
    kept = recorded(row, records)
    cells = cells_of(row, [kept[str(seed)] for seed in row["seeds"] if str(seed) in kept])
    return f"| {row['title']} | {' | '.join(cells[column] for column in columns)} |\n"


def cells_of(row: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, str]:
    """Every column that a table may ask for."""
    cost = [r["cost"] for r in results]
    memory = statistics.mean(c["peak_memory_bytes"] for c in cost)
    return {
        "seeds": str(len(results)),
        "teacher": spread([r["teacher"]["accuracy"] for r in results if r["teacher"]]),
        "student": spread([r["student"]["accuracy"] for r in results]),
        "lowest": f"{min(r['student']['accuracy'] for r in results):.2%}",
        "agreement": spread([r["student"]["agreement"] for r in results if r["teacher"]]),
        "published": f"{row['published']:.2%}" if "published" in row else "",
        "steps": between([c["steps"] for c in cost]),
        "images": between([c["images_synthesized"] for c in cost]),
        "queries": between([c["teacher_queries"] for c in cost]),
        "memory": f"{memory / 2**20:.0f} MiB",
        "time": f"{statistics.mean(c['wall_seconds'] for c in cost):.0f} s",
        "device": f"{device(results[0])}, {cost[0]['precision']}",
    } | {
        title: of_the_inputs([r["synthesized"].get(key) for r in results if "synthesized" in r])
        for title, key in DIAGNOSTICS.items()
    }


def of_the_inputs(values: list[float | None]) -> str:
    """The mean of a diagnostic; nothing where a teacher does not reveal what it takes."""
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.2f}" if known else ""


def between(counts: list[int]) -> str:
    """The count of all seeds; the least and the largest where a budget gave each its own."""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def device(result: dict[str, Any]) -> str:
    name, threads = result["cost"]["device"], result["versions"]["threads"]
    return f"{name}, {threads} thread{'s' * (threads > 1)}" if name == "cpu" else name


def spread(values: list[float]) -> str:
    """Mean ± standard deviation; nothing where nothing was measured, as without a teacher."""
    if not values:
        return ""
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{mean:.2%}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")
