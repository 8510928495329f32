"""Run the rows of docs/results.md with `train.py`, and make the pages from their results.

    python benchmarks/reproduce.py --list              rows and their commands
    python benchmarks/reproduce.py                     all except optional ones, in runs/results/
    python benchmarks/reproduce.py digits mnist-dafl -- data.root=datasets
    python benchmarks/reproduce.py cifar10-public-teacher -- data.path=F teacher.checkpoint=F
    python benchmarks/reproduce.py gpu-cifar10-wrn_40_2-wrn_16_1-nayer -- data=npz data.path=F
    python benchmarks/reproduce.py digits --seeds 1    one of a row's seeds; several such processes
                                                       may run at once
    python benchmarks/reproduce.py --table             docs/results.md, docs/results/, and the
                                                       README's figures, from benchmarks/results/

A finished row is not run again; an interrupted one is continued. If a run fails, the next ones
still run, and the failures are listed at the end. The result.json of each run is copied to
benchmarks/results/, with one file per table and one line per row and seed. These files are kept
with the code, so a row that was run again shows as a change. With data=npz a row's data set is read
from your file; classes, normalisation and recipe are still the row's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import cost, page, plot, summary
from benchmarks.columns import accuracies
from benchmarks.records import Kept, record
from data.builtin import MOMENTS
from engine.config import compose, plain

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "benchmarks" / "tables"
RECORDS = ROOT / "benchmarks" / "results"
# What changes where a row runs and not what it is; the result tells device and precision.
FROM_FILE = "data=npz"
ELSEWHERE = {"data.root", "data.path", "teacher.checkpoint", "device", "precision", "run_root"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="all by default; a name's beginning is enough")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these of each row's")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    options, extra = parser.parse_known_args()
    options.runs = options.runs.resolve()
    extra = [e for e in extra if e != "--"]
    names = [r for r in options.rows if "=" not in r]
    extra += [r for r in options.rows if "=" in r]
    tables = read_tables(TABLES)
    rows = [row for table in tables for row in table["rows"]]
    known = [row["name"] for row in rows]
    if unknown := [n for n in names if not any(meant(n, k, known) for k in known)]:
        parser.error(f"no row {', '.join(unknown)}; there is: {', '.join(known)}")
    if options.table:
        for name, text in made_files(tables, RECORDS).items():
            (ROOT / name).parent.mkdir(exist_ok=True)
            (ROOT / name).write_text(text)
        return 0
    failed = []
    of = {row["name"]: table for table in tables for row in table["rows"]}
    for row in rows:
        named = any(meant(n, row["name"], known) for n in names)
        if named or not (names or row.get("optional")):
            try:
                chosen = row["seeds"] if options.seeds is None else options.seeds
                seeds = [seed for seed in row["seeds"] if seed in chosen]
                own = row | {"seeds": seeds}
                run_row(of[row["name"]], own, options.runs, extra, options.list)
            except subprocess.CalledProcessError as error:
                failed.append(f"{row['name']}: python {' '.join(error.cmd[1:])}")
    if failed:
        print("These rows did not finish, with the commands that failed:", *failed, sep="\n  ")
    return int(bool(failed))


def made_files(tables: list[dict[str, Any]], records: Path) -> dict[str, str]:
    """Every file that is made from the kept results, by its path in the repository."""
    kept = Kept(records)
    file = records / "agreement.json"
    students = json.loads(file.read_text()) if file.exists() else []
    files = {
        "README.md": summary.readme(tables, kept, (ROOT / "README.md").read_text()),
        "docs/results.md": summary.summary_page(tables, kept),
        "docs/results/cost.md": cost.cost_page(records),
    }
    for name in page.TITLES:
        more = plot.agreement_section(students) if name == "data-free" else ""
        files[f"docs/results/{name}.md"] = page.topic_page(name, tables, kept, more)
    for table in (table for table in tables if "summary" in table):
        files[f"docs/results/{table['name']}.svg"] = plotted(table, kept)
    return files | ({"docs/results/agreement.svg": plot.svg(students)} if students else {})


def plotted(table: dict[str, Any], kept: Kept) -> str:
    """The plot of a table's methods, with the same marks as in the table."""
    found = {}
    for row in table["rows"]:
        if kept.lines(row) and not row.get("control"):
            name = row["title"].strip("`") + page.MARK * bool(kept.changed(row))
            found[name] = accuracies(kept.results(row))
    return plot.plot_methods(table["title"], found)


def run_row(
    table: dict[str, Any], row: dict[str, Any], runs: Path, extra: list[str], dry: bool
) -> None:
    """Run a row's seeds, or print the commands if ``dry``; keep the results. A failure ends it."""
    given = {override.split("=")[0] for override in extra if override != FROM_FILE}
    extra = placed(row, extra)
    if missing := [key for key in row.get("needs", []) if key not in given]:
        print(f"{row['name']} is skipped: it needs {', '.join(missing)}")
        return
    for seed, command in zip(row["seeds"], commands(row, runs, extra), strict=True):
        print("python", *command, flush=True)
        if dry:
            continue
        place = runs / row["name"] / f"seed{seed}"
        finished = (place / "result.json").exists()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        if given <= ELSEWHERE:
            record(table, row, seed, place, RECORDS, now=not finished)
        else:
            print(f"not kept in {RECORDS}: {' '.join(extra)} makes it another run")


def placed(row: dict[str, Any], extra: list[str]) -> list[str]:
    """The overrides, with ``data=npz`` changed to read the row's data set from a file.

    As a choice of the group, npz would bring its own recipe and normalisation.
    """
    if FROM_FILE not in extra:
        return extra
    dataset = plain(compose(row["overrides"]))["data"]["dataset"]
    moments = MOMENTS.get((dataset.get("name", ""), dataset["size"]), (None, None))
    node = {key: dataset.get(key) for key in ("classes", "size", "val_fraction")}
    node |= {"_target_": "data.files.npz", "path": "${data.path}"}
    for key, known in zip(("mean", "std"), moments, strict=True):
        node[key] = known if dataset[key] is None else dataset[key]
    text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in node.items())
    return [o for o in extra if o != FROM_FILE] + [f"data.dataset={{{text}}}"]


def meant(given: str, name: str, known: list[str]) -> bool:
    """The row with this name, or all rows whose names begin with it."""
    return name == given if given in known else name.startswith(given)


def read_tables(folder: Path) -> list[dict[str, Any]]:
    """The tables, with every row with ``each`` expanded."""
    files = sorted(folder.glob("*.yaml"))
    tables = [table for file in files for table in yaml.safe_load(file.read_text())]
    for table in tables:
        table["rows"] = [row for entry in table["rows"] for row in written_out(entry)]
    return tables


def written_out(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each combination of the entry's choices, with the keys of these choices."""
    shared = {key: value for key, value in entry.items() if key != "each"}
    shared["entry"] = entry["name"]
    kinds = entry.get("each", {})
    rows = []
    for choice in itertools.product(*kinds.values()):
        row = shared | dict(zip(kinds, choice, strict=True))
        for kind, name in zip(kinds, choice, strict=True):
            more = kinds[kind][name] if isinstance(kinds[kind], dict) else {}
            row |= more | {"overrides": row["overrides"] + flat(more.get("overrides", []))}
        for key in [key for key in row if isinstance(row[key], dict)]:
            by_choice = row.pop(key)
            for name in set(by_choice) & set(choice):
                row[key] = by_choice[name]
        row["overrides"] = [filled(o, row) for o in row["overrides"]]
        named = [key for key in ("name", "title") if key in row]
        rows.append(row | {key: filled(row[key], row) for key in named})
    return rows


def flat(overrides: list[Any]) -> list[str]:
    """The items of a list that may hold lists, as with YAML's aliases."""
    lists = [o if isinstance(o, list) else [o] for o in overrides]
    return list(itertools.chain(*lists))


def filled(text: str, row: dict[str, Any]) -> str:
    """The text with {KEY} replaced by the row's value, which may contain further keys."""
    before = None
    while text != before:
        before = text
        for key, value in row.items():
            text = text.replace(f"{{{key}}}", str(value))
    return text


def commands(row: dict[str, Any], runs: Path, extra: list[str]) -> list[list[str]]:
    """A row's commands, one per seed; {runs} and {seed} lead to the runs of earlier rows."""
    overrides = [*row["overrides"], *extra]
    if seconds := row.get("seconds"):
        overrides.append(f"budget={seconds}s")
    found = []
    for seed in row["seeds"]:
        own = [o.replace("{runs}", str(runs)).replace("{seed}", str(seed)) for o in overrides]
        place = runs / row["name"] / f"seed{seed}"
        found.append(["train.py", *own, f"seed={seed}", f"run_dir={place}"])
    return found


if __name__ == "__main__":
    sys.exit(main())
