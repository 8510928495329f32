"""What benchmarks/results/ keeps of a row's runs, for as long as their settings hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from core.files import write_whole

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GROUP = {"teacher": "model", "student": "model"}


def recorded(row: dict[str, Any], records: Path) -> dict[str, Any]:
    """The kept results of a row by seed; none where its command or a file that it chose was
    another."""
    file = records / f"{row['name']}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    holds = kept.get("overrides") == row["overrides"] and all(
        digest(name) == value for name, value in kept["settings"].items()
    )
    return kept["runs"] if holds else {}  # type: ignore[no-any-return]


def record(row: dict[str, Any], seed: int, run: Path, records: Path) -> None:
    """Keep a finished run's result, with what computed it, the row's command and its settings."""
    names = ("result.json", "versions.json")
    result, versions = (json.loads((run / name).read_text()) for name in names)
    runs = recorded(row, records) | {str(seed): {**result, "versions": versions}}
    kept = {
        "overrides": row["overrides"],
        "settings": {name: digest(name) for name in chosen(run)},
        "runs": dict(sorted(runs.items())),
    }
    records.mkdir(exist_ok=True)
    write_whole(records / f"{row['name']}.json", json.dumps(kept, indent=1) + "\n")


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
    """A mark of what a file under configs/ says, with those that it starts from, and whatever its
    comments; empty where it is gone."""
    file = CONFIGS / f"{name}.yaml"
    if not file.exists():
        return ""
    content = yaml.safe_load(file.read_text()) or {}
    bases = [base for base in content.get("defaults", []) if isinstance(base, str)]
    under = [digest(f"{file.parent.name}/{base}") for base in bases if base != "_self_"]
    return hashlib.sha256(json.dumps([content, under]).encode()).hexdigest()[:12]
