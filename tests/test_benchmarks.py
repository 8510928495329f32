"""The rows of docs/results.md are commands that compose, and the page is made of what they left."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reproduce
from benchmarks.reproduce import cells_of, commands, page, read, steps_within, written_out
from engine.config import compose

TABLES = read(reproduce.ROOT / "benchmarks" / "tables.yaml")
ROWS = {row["name"]: row for table in TABLES for row in table["rows"]}


def result(accuracy: float, seconds: float = 10.0) -> dict[str, Any]:
    student = {"accuracy": accuracy, "agreement": accuracy}
    cost = {"steps": 100, "images_synthesized": 1000, "teacher_queries": 2000}
    cost |= {"peak_memory_bytes": 2**30, "wall_seconds": seconds}
    more = {"device": "cpu", "precision": "fp32"}
    return {"teacher": {"accuracy": 0.99}, "student": student, "cost": cost | more}


@pytest.mark.parametrize("name", ROWS)
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
    file = tmp_path / "digits" / "seed1" / "result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(result(0.9)))
    text = page(TABLES, tmp_path)
    [line] = [x for x in text.splitlines() if "the default command" in x]
    assert "| 1 | 99.00% | 90.00% |" in line
    assert text.count("not run yet") == len(ROWS) - 1 + 1  # and the time of a step


def test_a_budget_of_seconds_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that takes 4 s and 1 s for every 100 steps fits 11,600 steps into two minutes."""

    def run(command: list[str], **settings: Any) -> None:
        given = dict(c.split("=", 1) for c in command if "=" in c)
        file = Path(given["run_dir"]) / "result.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(result(0.5, 4 + int(given["steps"]) / 100)))

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
