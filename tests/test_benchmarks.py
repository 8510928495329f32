"""The rows of docs/results.md are commands that compose, and the page is made of what they left."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reproduce
from benchmarks.reproduce import (
    cells_of,
    commands,
    device,
    page,
    read,
    record,
    recorded,
    section,
    steps_within,
    written_out,
)
from engine.config import compose

TABLES = read(reproduce.ROOT / "benchmarks" / "tables.yaml")
ROWS = {row["name"]: row for table in TABLES for row in table["rows"]}


def result(accuracy: float, seconds: float = 10.0) -> dict[str, Any]:
    student = {"accuracy": accuracy, "agreement": accuracy}
    cost = {"steps": 100, "images_synthesized": 1000, "teacher_queries": 2000}
    cost |= {"peak_memory_bytes": 2**30, "wall_seconds": seconds}
    more = {"device": "cpu", "precision": "fp32"}
    parts = {"teacher": {"accuracy": 0.99}, "student": student, "cost": cost | more}
    return parts | {"versions": {"torch": "2.14.1", "threads": 2}}


def left_in(run: Path, what: dict[str, Any]) -> Path:
    """A run directory as a finished run leaves it."""
    run.mkdir(parents=True)
    versions = what.pop("versions")
    (run / "result.json").write_text(json.dumps(what))
    (run / "versions.json").write_text(json.dumps(versions))
    return run


@pytest.mark.parametrize(
    "name", {tuple(row["overrides"]): name for name, row in ROWS.items()}.values()
)
def test_every_row_composes(name: str) -> None:
    overrides = [o for o in ROWS[name]["overrides"] if "{choice}" not in o]
    assert overrides == ROWS[name]["overrides"]
    assert compose(overrides).seed == 0


def test_a_row_for_several() -> None:
    entry = {"name": "x-{choice}", "title": "`{choice}`", "overrides": ["term={choice}"]}
    one, two = written_out(
        {**entry, "each": {"kd": {}, "at": {"overrides": ["seed=1"], "note": "n"}}}
    )
    assert (one["name"], one["overrides"]) == ("x-kd", ["term=kd"])
    assert (two["title"], two["overrides"], two["note"]) == ("`at`", ["term=at", "seed=1"], "n")
    assert [row["name"] for row in written_out({**entry, "each": ["a", "b"]})] == ["x-a", "x-b"]
    assert len(ROWS) == sum(len(table["rows"]) for table in TABLES), "two rows of one name"


def test_columns_are_computed() -> None:
    cells = cells_of({"published": 0.95}, [result(0.9, 10), result(0.8, 20)])
    assert cells["student"] == "85.00% ± 7.07"
    assert (cells["lowest"], cells["published"]) == ("80.00%", "95.00%")
    assert (cells["time"], cells["memory"], cells["queries"]) == ("15 s", "1024 MiB", "2,000")
    for table in TABLES:
        assert set(table["columns"]) <= set(cells)


def test_a_run_without_a_teacher_has_empty_columns() -> None:
    alone = result(0.9) | {"teacher": None}
    cells = cells_of({}, [alone])
    assert (cells["teacher"], cells["agreement"], cells["student"]) == ("", "", "90.00%")


def test_the_page_holds_what_was_run_and_says_what_was_not(tmp_path: Path) -> None:
    record(ROWS["digits"], 1, left_in(tmp_path / "run", result(0.9)), tmp_path / "results")
    text = page(TABLES, tmp_path / "results")
    [line] = [x for x in text.splitlines() if "the default command" in x]
    assert "| 1 | 99.00% | 90.00% |" in line
    wanted = sum(not row.get("optional") for row in ROWS.values())
    empty = sum(all(row.get("optional") for row in table["rows"]) for table in TABLES)
    assert text.count("not run yet") == wanted - 1 + empty + 1  # and the time of a step


def test_an_optional_row_is_run_where_it_is_named_and_shown_once_it_has_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, listed in (([], False), (["mnist-10min-dfq"], True), (["mnist-10min"], True)):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--list", *names])
        assert reproduce.main() == 0
        assert ("mnist-10min-dfq" in capsys.readouterr().out) == listed
    [table] = [t for t in TABLES if any(r["name"] == "mnist-10min-dfq" for r in t["rows"])]
    assert "`dfq`" not in section(table, tmp_path)
    record(ROWS["mnist-10min-dfq"], 0, left_in(tmp_path / "run", result(0.9)), tmp_path)
    assert "| `dfq` | 1 | 90.00%" in section(table, tmp_path)
    assert "`dafl`" not in section(table, tmp_path)


def test_results_are_kept_until_the_command_changes(tmp_path: Path) -> None:
    row = {"name": "x", "overrides": ["method=dfq"]}
    for seed, accuracy in ((2, 0.7), (0, 0.8), (2, 0.9)):
        record(row, seed, left_in(tmp_path / f"{seed}-{accuracy}", result(accuracy)), tmp_path)
    kept = recorded(row, tmp_path)
    assert {seed: r["student"]["accuracy"] for seed, r in kept.items()} == {"0": 0.8, "2": 0.9}
    assert kept["2"]["versions"] == {"torch": "2.14.1", "threads": 2}
    assert recorded({**row, "overrides": ["method=dafl"]}, tmp_path) == {}


def test_a_run_of_other_settings_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "RECORDS", tmp_path / "results")
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: None)
    for seed in ROWS["digits"]["seeds"]:
        left_in(tmp_path / "digits" / f"seed{seed}", result(0.9))
    arguments = ["reproduce.py", "digits", "--runs", str(tmp_path), "--"]
    monkeypatch.setattr(sys, "argv", [*arguments, "steps=5"])
    assert reproduce.main() == 0
    assert not (tmp_path / "results").exists()
    monkeypatch.setattr(sys, "argv", [*arguments, "device=cpu"])
    assert reproduce.main() == 0
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["digits.json"]  # and no more


def test_a_device_is_named_with_its_threads_where_they_matter() -> None:
    on_gpu = result(0.9)
    on_gpu["cost"]["device"] = "NVIDIA H100"
    assert (device(result(0.9)), device(on_gpu)) == ("cpu, 2 threads", "NVIDIA H100")


def test_the_kept_results_belong_to_rows() -> None:
    kept = {p.stem for p in reproduce.RECORDS.glob("*.json") if "step_time" not in p.stem}
    assert kept <= set(ROWS), "a row was renamed or removed: its results go too"
    stale = [name for name in kept if not recorded(ROWS[name], reproduce.RECORDS)]
    assert not stale, "their commands have changed: run them again, or remove them"


def test_a_budget_of_seconds_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that takes 4 s and 1 s for every 100 steps fits 11,600 steps into two minutes."""

    def run(command: list[str], **settings: Any) -> None:
        given = dict(c.split("=", 1) for c in command if "=" in c)
        left_in(Path(given["run_dir"]), result(0.5, 4 + int(given["steps"]) / 100))

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    row = {"name": "x", "overrides": ["method=dfq"], "seeds": [0, 1], "seconds": 120}
    assert steps_within(120, row, tmp_path, []) == 11600
    monkeypatch.setattr(reproduce.subprocess, "run", None)  # it is kept
    for command in commands(row, tmp_path, ["a=b"], dry=False):
        assert command[:4] == ["train.py", "method=dfq", "a=b", "steps=11600"]


def test_an_unknown_row_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reproduce.py", "digitz"])
        with pytest.raises(SystemExit):
            reproduce.main()
    assert "no row digitz" in capsys.readouterr().err
