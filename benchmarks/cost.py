"""The page docs/results/cost.md, from the figures that the timing scripts wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.page import MADE

HEAD = f"""# Cost

{MADE}
Each script writes a file to `benchmarks/results/`, with the device and the number of threads.
"""

STEPS = """
## Time of a step

`python benchmarks/step_time.py --json benchmarks/results/step_time_fp32.json`, and with
`precision=bf16`. A cycle is one generator step and five student steps. Median, minimum and maximum.

| cycle | generator step | student step | images/s | peak memory | where and what |
| --- | --- | --- | --- | --- | --- |
"""

PLAIN = """
## Compared with a plain loop

`python benchmarks/plain_step.py --json benchmarks/results/plain_step_fp32.json`: the same cycle,
alternating with a plain loop's. A ratio below 1 means that Reverie is faster.

| Reverie | plain loop | ratio | where and what |
| --- | --- | --- | --- |
"""

LOSSES = """
## The time of each loss

`python benchmarks/loss_time.py --json benchmarks/results/loss_time_fp32.json`: a student step of
plain KD alternates with one that has the loss too. Ratio of the two: median, minimum and maximum.
"""

LOSS_COLUMNS = "| loss | KD alone | with the loss | ratio |\n| --- | --- | --- | --- |\n"


def cost_page(records: Path) -> str:
    """The whole page, which also says what has not run."""

    def timed(kind: str, line: Callable[[dict[str, Any]], str], missing: str) -> str:
        files = sorted(records.glob(f"{kind}*.json"))
        return "".join(line(json.loads(file.read_text())) for file in files) or missing

    return (
        HEAD
        + STEPS
        + timed("step_time", step_line, "| not run yet | | | | | |\n")
        + PLAIN
        + timed("plain_step", plain_line, "| not run yet | | | |\n")
        + LOSSES
        + timed("loss_time", loss_table, "\nNot run yet.\n")
    )


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
    return f"\n{where(figure)}\n\n{LOSS_COLUMNS}{body}"


def where(figure: dict[str, Any]) -> str:
    threads = f"{figure['threads']} thread{'s' * (figure['threads'] > 1)}"
    return f"{figure['device']}, {threads}, torch {figure['torch']}: {figure['overrides']}"
