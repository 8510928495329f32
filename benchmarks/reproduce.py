"""Run the rows of docs/results.md as `train.py` would, and make the page from what they leave.

    python benchmarks/reproduce.py --list              rows and their commands
    python benchmarks/reproduce.py                     all of them, into runs/results/
    python benchmarks/reproduce.py digits mnist-dafl -- data.root=datasets
    python benchmarks/reproduce.py cifar10-public-teacher -- data.path=F teacher.checkpoint=F
    python benchmarks/reproduce.py --table             docs/results.md from benchmarks/results/

A row that is finished is not run again; one that was interrupted goes on. A row with a budget of
seconds is timed first, and keeps the steps that it found beside its runs. What a run leaves in its
result.json goes into benchmarks/results/, a file a row, which is kept with the code: a row that was
run again shows as a change there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine.files import write_whole  # noqa: E402

RECORDS = ROOT / "benchmarks" / "results"
PROBES = (200, 600)  # steps
# What changes where a row runs and not what it is; the result tells device and precision.
ELSEWHERE = {"data.root", "data.path", "teacher.checkpoint", "device", "precision", "run_root"}
HEAD = """# Results

Made by `python benchmarks/reproduce.py --table` from the `result.json` of each run, which
`benchmarks/results/` keeps; never edited. A row whose command has changed since counts as not run.
`python benchmarks/reproduce.py --list` prints the command of every row.

Accuracy is that of the last step, on the whole test split. With several seeds: mean ± standard
deviation, and the lowest. Time is the student's run, synthesis and evaluation included and the
teacher's training not.
"""

STEPS = """
## Time of a step

`python benchmarks/step_time.py --json benchmarks/results/step_time_fp32.json`, and with
`precision=bf16`: one cycle is a generator step and five student steps. Median, minimum and maximum.

| cycle | generator step | student step | images/s | peak memory | where and what |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="all by default; a name's beginning is enough")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    options, extra = parser.parse_known_args()
    options.runs = options.runs.resolve()
    extra = [e for e in extra if e != "--"]
    names = [r for r in options.rows if "=" not in r]
    extra += [r for r in options.rows if "=" in r]
    tables = read(ROOT / "benchmarks" / "tables.yaml")
    rows = [row for table in tables for row in table["rows"]]
    known = [row["name"] for row in rows]
    if unknown := [n for n in names if not any(meant(n, k, known) for k in known)]:
        parser.error(f"no row {', '.join(unknown)}; there is: {', '.join(known)}")
    if options.table:
        (ROOT / "docs" / "results.md").write_text(page(tables, RECORDS))
        return 0
    given = {override.split("=")[0] for override in extra}
    for row in rows:
        if names and not any(meant(n, row["name"], known) for n in names):
            continue
        if missing := [key for key in row.get("needs", []) if key not in given]:
            print(f"{row['name']} is left out: it needs {', '.join(missing)}")
            continue
        settings = commands(row, options.runs, extra, options.list)
        for seed, command in zip(row["seeds"], settings, strict=True):
            print("python", *command, flush=True)
            if options.list:
                continue
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
            if given <= ELSEWHERE:
                record(row, seed, options.runs / row["name"] / f"seed{seed}", RECORDS)
            else:
                print(f"not kept in {RECORDS}: with {' '.join(extra)} it is another run")
    return 0


def meant(given: str, name: str, known: list[str]) -> bool:
    """A row's whole name is that row, and a beginning all the rows that begin so."""
    return name == given if given in known else name.startswith(given)


def read(path: Path) -> list[dict[str, Any]]:
    """The tables, with every row that stands for several written out."""
    tables = yaml.safe_load(path.read_text())
    for table in tables:
        table["rows"] = [row for entry in table["rows"] for row in written_out(entry)]
    return tables  # type: ignore[no-any-return]


def written_out(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each choice; a mapping of choices adds to each what belongs to it alone."""
    choices = entry.get("each", {"": {}})
    if not isinstance(choices, dict):
        choices = {choice: {} for choice in choices}
    rows = []
    for choice, more in choices.items():
        row = {**entry, **more}
        row["name"], row["title"] = (entry[k].format(choice=choice) for k in ("name", "title"))
        overrides = [o.replace("{choice}", choice) for o in entry["overrides"]]
        row["overrides"] = overrides + more.get("overrides", [])
        rows.append(row)
    return rows


def commands(row: dict[str, Any], runs: Path, extra: list[str], dry: bool) -> list[list[str]]:
    """What runs a row, one command a seed."""
    overrides = [*row["overrides"], *extra]
    if seconds := row.get("seconds"):
        overrides.append(f"steps={'TIMED' if dry else steps_within(seconds, row, runs, extra)}")
    place = [f"run_dir={runs / row['name'] / f'seed{seed}'}" for seed in row["seeds"]]
    seeds = [f"seed={seed}" for seed in row["seeds"]]
    return [["train.py", *overrides, *pair] for pair in zip(seeds, place, strict=True)]


def steps_within(seconds: float, row: dict[str, Any], runs: Path, extra: list[str]) -> int:
    """How many steps of the row fit, from the time of two short runs; found once and kept."""
    file = runs / row["name"] / "steps.json"
    if file.exists():
        return int(json.loads(file.read_text())["steps"])
    times = []
    with tempfile.TemporaryDirectory() as scratch:
        for steps in PROBES:
            run = Path(scratch) / str(steps)
            settings = [f"steps={steps}", "evaluations=1", "checkpoints=1", f"run_dir={run}"]
            command = [sys.executable, "train.py", *row["overrides"], *extra, *settings]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            times.append(json.loads((run / "result.json").read_text())["cost"]["wall_seconds"])
    slope = (times[1] - times[0]) / (PROBES[1] - PROBES[0])
    found = round(PROBES[0] + (seconds - times[0]) / slope, -2)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"steps": int(found), "probes": dict(zip(PROBES, times, strict=True))})
    )
    return int(found)


def record(row: dict[str, Any], seed: int, run: Path, records: Path) -> None:
    """Keep a finished run's result, with what computed it and the row's command."""
    file = records / f"{row['name']}.json"
    kept = {"overrides": row["overrides"], "runs": recorded(row, records)}
    names = ("result.json", "versions.json")
    result, versions = (json.loads((run / name).read_text()) for name in names)
    kept["runs"][str(seed)] = {**result, "versions": versions}
    kept["runs"] = dict(sorted(kept["runs"].items()))
    records.mkdir(exist_ok=True)
    write_whole(file, json.dumps(kept, indent=1) + "\n")


def recorded(row: dict[str, Any], records: Path) -> dict[str, Any]:
    """The kept results of a row by seed; none where its command was another."""
    file = records / f"{row['name']}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    return kept["runs"] if kept.get("overrides") == row["overrides"] else {}  # type: ignore[no-any-return]


def page(tables: list[dict[str, Any]], records: Path) -> str:
    """The whole of docs/results.md; a row without a finished run says so."""
    figures = [json.loads(path.read_text()) for path in sorted(records.glob("step_time*.json"))]
    steps = "".join(step_line(f) for f in figures) or "| not run yet | | | | | |\n"
    return HEAD + "".join(section(table, records) for table in tables) + STEPS + steps


def section(table: dict[str, Any], records: Path) -> str:
    columns = table["columns"]
    head = f"\n## {table['title']}\n\n{table['text']}\n\n| run | {' | '.join(columns)} |\n"
    rule = "| --- |" + " --- |" * len(columns) + "\n"
    body = "".join(line(row, columns, records) for row in table["rows"])
    notes = [f"- {row['title']}: {row['note']}\n" for row in table["rows"] if "note" in row]
    return head + rule + body + ("\n" + "".join(notes) if notes else "")


def step_line(figure: dict[str, Any]) -> str:
    """One file of benchmarks/step_time.py."""
    seconds = [figure[f"{k}_seconds"] for k in ("cycle", "generator_step", "student_step")]
    cells = [f"{s['median']:.3f} s ({s['min']:.3f}-{s['max']:.3f})" for s in seconds]
    cells += [str(figure["images_per_second"]), f"{figure['peak_memory_bytes'] / 2**20:.0f} MiB"]
    device = f"{figure['device']}, {figure['threads']} threads, torch {figure['torch']}"
    return f"| {' | '.join(cells)} | {device}: {figure['overrides']} |\n"


def line(row: dict[str, Any], columns: list[str], records: Path) -> str:
    kept = recorded(row, records)
    results = [kept[str(seed)] for seed in row["seeds"] if str(seed) in kept]
    cells = cells_of(row, results) if results else {"seeds": f"0 of {len(row['seeds'])}"}
    values = [cells.get(column, "") for column in columns]
    if not results:
        values[-1] = "not run yet"
    return f"| {row['title']} | {' | '.join(values)} |\n"


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
        "steps": f"{cost[0]['steps']:,}",
        "images": f"{cost[0]['images_synthesized']:,}",
        "queries": f"{cost[0]['teacher_queries']:,}",
        "memory": f"{memory / 2**20:.0f} MiB",
        "time": f"{statistics.mean(c['wall_seconds'] for c in cost):.0f} s",
        "device": f"{device(results[0])}, {cost[0]['precision']}",
    }


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


if __name__ == "__main__":
    sys.exit(main())
