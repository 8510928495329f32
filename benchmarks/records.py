"""The kept results of each table, in benchmarks/results/: a line for each row and seed."""

from __future__ import annotations

import datetime
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from core.files import write_whole
from core.git import commit_of

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
GROUP = {"teacher": "model", "student": "model"}
BESIDE = [":!benchmarks/results", ":!docs", ":!README.md"]  # changed by recording a row
COMMAND = "the command"

Line = dict[str, Any]


class Kept:
    """The kept lines of every table, by row.

    Args:
        records: the folder, with a file TABLE.jsonl for each table that has run.
    """

    def __init__(self, records: Path) -> None:
        self.records = records
        self._rows: dict[str, list[Line]] = {}
        self._changed: dict[str, list[str]] = {}
        for file in sorted(records.glob("*.jsonl")):
            for line in read_lines(file):
                self._rows.setdefault(line["row"], []).append(line)

    def lines(self, row: dict[str, Any]) -> list[Line]:
        """The lines of a row's seeds, in their order."""
        own = {line["seed"]: line for line in self._rows.get(row["name"], [])}
        return [own[seed] for seed in row["seeds"] if seed in own]

    def results(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The ``result.json`` of each of the row's runs, each with its ``versions``."""
        return [{**line["result"], "versions": line["versions"]} for line in self.lines(row)]

    def changed(self, row: dict[str, Any]) -> list[str]:
        """What has changed since any of the row's seeds ran; empty where all are current."""
        if row["name"] not in self._changed:
            found = {what for line in self.lines(row) for what in changed(row, line)}
            self._changed[row["name"]] = sorted(found)
        return self._changed[row["name"]]


def changed(row: dict[str, Any], line: Line) -> list[str]:
    """The command, and the chosen files under configs/, if they differ from those of the run."""
    files = [
        f"configs/{name}.yaml" for name, value in line["settings"].items() if digest(name) != value
    ]
    return [COMMAND] * (line["overrides"] != row["overrides"]) + files


def record(
    table: dict[str, Any], row: dict[str, Any], seed: int, run: Path, records: Path, now: bool
) -> None:
    """Keep a finished run's result with its versions, host, command and settings.

    Args:
        now: whether it has just run, so that the code and the host's load are its own. If an
            earlier line holds the same result, that line is kept.
    """
    names = ("result.json", "versions.json")
    result, versions = (json.loads((run / name).read_text()) for name in names)
    if not now and any(line["result"] == result for line in Kept(records).lines(row)):
        return
    line = {
        "row": row["name"],
        "seed": seed,
        "commit": commit() if now else None,
        "date": _day((run / "result.json").stat().st_mtime),
        "overrides": row["overrides"],
        "settings": {name: digest(name) for name in chosen(run)},
        "versions": versions,
        "host": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2) if now else None},
        "result": result,
    }
    keep(table, [line], records)


def keep(table: dict[str, Any], lines: Sequence[Line], records: Path) -> None:
    """Write lines into their table's file, in the table's order, in place of earlier ones.

    A new line replaces the earlier one of the same row and seed. If the row's command or files have
    changed since an earlier line, a new line of any seed replaces it. Processes take turns.
    """
    order = [row["name"] for row in table["rows"]]
    rows = {row["name"]: row for row in table["rows"]}
    new = {(line["row"], line["seed"]): line for line in lines}
    again = {line["row"] for line in lines}
    records.mkdir(parents=True, exist_ok=True)
    folder = os.open(records, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # held until it is closed
        file = records / f"{table['name']}.jsonl"
        for line in read_lines(file) if file.exists() else []:
            key = (line["row"], line["seed"])
            if key in new or line["row"] not in rows:
                continue
            if line["row"] not in again or not changed(rows[line["row"]], line):
                new[key] = line
        kept = sorted(new.values(), key=lambda line: (order.index(line["row"]), line["seed"]))
        write_whole(file, *(json.dumps(line) + "\n" for line in kept))
    finally:
        os.close(folder)


def read_lines(file: Path) -> list[Line]:
    return [json.loads(text) for text in file.read_text().splitlines()]


def commit() -> str | None:
    """The commit that is checked out, marked if tracked files differ; None without git."""
    return commit_of(ROOT, [".", *BESIDE])


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def chosen(run: Path) -> list[str]:
    """The files under configs/ that a run chose (``method/dafl``), and its teacher's recipe."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    trained = config["needs_teacher"] and not config["teacher"]["checkpoint"]
    names = ["method/scratch"] if trained else []
    for group, choice in config["choices"].items():
        for name in choice if isinstance(choice, list) else [choice]:
            names.append(f"{GROUP.get(group, group)}/{name.split('(')[0]}")  # wrn(depth=22)
    return sorted(set(names))


def digest(name: str) -> str:
    """A hash of the content of a file under configs/ and its defaults, without comments; empty if
    there is no such file."""
    file = CONFIGS / f"{name}.yaml"
    if not file.exists():
        return ""
    content = _content(file.read_text())
    bases = [base for base in content.get("defaults", []) if isinstance(base, str)]
    under = [digest(f"{file.parent.name}/{base}") for base in bases if base != "_self_"]
    return hashlib.sha256(json.dumps([content, under]).encode()).hexdigest()[:12]


@functools.cache  # by text: a page needs a few files a thousand times
def _content(text: str) -> Any:
    return yaml.safe_load(text) or {}
