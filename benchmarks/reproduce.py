"""Run the rows of docs/results.md as `train.py` would, and make the page from what they leave.

    python benchmarks/reproduce.py --list              rows and their commands
    python benchmarks/reproduce.py                     all of them, into runs/results/
    python benchmarks/reproduce.py digits mnist-dafl -- data.root=datasets
    python benchmarks/reproduce.py cifar10-public-teacher -- data.path=F teacher.checkpoint=F
    python benchmarks/reproduce.py --table             docs/results.md from the result.json files

A row that is finished is not run again; one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Results

Made by `python benchmarks/reproduce.py --table` from the `result.json` of each run; never edited.
`python benchmarks/reproduce.py --list` prints the command of every row.

Accuracy is that of the last step, on the whole test split. With several seeds: mean ± standard
deviation, and the lowest. Each seed has a teacher of its own. The settings of the methods were
chosen on these very test splits, with seed 0. Time is the student's run, synthesis and evaluation
included and the teacher's training not.

| run | seeds | teacher | student | lowest | agreement | published | images | time | device |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

STEPS = """
## Time of a step

`python benchmarks/step_time.py --json runs/results/step_time_fp32.json`, and with `precision=bf16`:
one cycle is a generator step and five student steps. Median, minimum and maximum.

| cycle | generator step | student step | images/s | peak memory | where and what |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="all by default")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    options, extra = parser.parse_known_args()
    options.runs = options.runs.resolve()
    extra = [e for e in extra if e != "--"]
    names = [r for r in options.rows if "=" not in r]
    extra += [r for r in options.rows if "=" in r]
    rows = yaml.safe_load((ROOT / "benchmarks" / "rows.yaml").read_text())
    unknown = set(names) - {row["name"] for row in rows}
    if unknown:
        parser.error(
            f"no row {', '.join(sorted(unknown))}; there is: {', '.join(r['name'] for r in rows)}"
        )
    chosen = [row for row in rows if not names or row["name"] in names]
    if options.table:
        (ROOT / "docs" / "results.md").write_text(page(rows, options.runs))
        return 0
    given = {override.split("=")[0] for override in extra}
    for row in chosen:
        if missing := [key for key in row.get("needs", []) if key not in given]:
            print(f"{row['name']} is left out: it needs {', '.join(missing)}")
            continue
        for seed in row["seeds"]:
            command = ["train.py", *row["overrides"], f"seed={seed}", *extra]
            command.append(f"run_dir={options.runs / row['name'] / f'seed{seed}'}")
            print("python", *command, flush=True)
            if not options.list:
                subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return 0


def page(rows: list[dict[str, Any]], runs: Path) -> str:
    """The whole of docs/results.md; a row without a finished run says so."""
    figures = [json.loads(path.read_text()) for path in sorted(runs.glob("step_time*.json"))]
    steps = "".join(step_line(f) for f in figures) or "| not run yet | | | | | |\n"
    return HEAD + "".join(line(row, runs) for row in rows) + STEPS + steps


def step_line(figure: dict[str, Any]) -> str:
    """One file of benchmarks/step_time.py."""
    seconds = [figure[f"{k}_seconds"] for k in ("cycle", "generator_step", "student_step")]
    cells = [f"{s['median']:.3f} s ({s['min']:.3f}-{s['max']:.3f})" for s in seconds]
    cells += [str(figure["images_per_second"]), f"{figure['peak_memory_bytes'] / 2**20:.0f} MiB"]
    device = f"{figure['device']}, {figure['threads']} threads, torch {figure['torch']}"
    return f"| {' | '.join(cells)} | {device}: {figure['overrides']} |\n"


def line(row: dict[str, Any], runs: Path) -> str:
    paths = [runs / row["name"] / f"seed{seed}" / "result.json" for seed in row["seeds"]]
    results = [json.loads(p.read_text()) for p in paths if p.exists()]
    if not results:
        return f"| {row['title']} | 0 of {len(paths)} | | | | | | | | not run yet |\n"
    cost = [r["cost"] for r in results]
    cells = [
        row["title"],
        str(len(results)),
        spread([r["teacher"]["accuracy"] for r in results]),
        spread([r["student"]["accuracy"] for r in results]),
        f"{min(r['student']['accuracy'] for r in results):.2%}",
        spread([r["student"]["agreement"] for r in results]),
        f"{row['published']:.2%}" if "published" in row else "",
        f"{cost[0]['images_synthesized']:,}",
        f"{statistics.mean(c['wall_seconds'] for c in cost):.0f} s",
        f"{cost[0]['device']}, {cost[0]['precision']}",
    ]
    return "| " + " | ".join(cells) + " |\n"


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{mean:.2%}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")


if __name__ == "__main__":
    sys.exit(main())
