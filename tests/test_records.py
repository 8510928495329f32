"""What is kept of a row, and what is said to have changed since."""

import datetime
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import records, reproduce
from benchmarks.records import COMMAND, Kept, chosen, digest, read_lines, record
from core.runtime import Runtime
from data.builtin import MOMENTS
from engine.config import compose, plain
from engine.parts import build_dataset
from tests.test_benchmarks import TABLES, left_in, result

ROW: dict[str, Any] = {"name": "x", "overrides": ["method=dfq"], "seeds": [0, 1, 2]}
TABLE = {"name": "some", "rows": [{**ROW, "name": "first"}, ROW]}


def put(row: dict[str, Any], seed: int, accuracy: float, folder: Path, now: bool = True) -> None:
    """Keep a run of this accuracy in ``folder/results``."""
    run = left_in(folder / f"run{len(list(folder.iterdir()))}", result(accuracy))
    table = {"name": "some", "rows": [TABLE["rows"][0], row]}
    record(table, row, seed, run, folder / "results", now)


def accuracies(row: dict[str, Any], folder: Path) -> dict[int, float]:
    lines = Kept(folder / "results").lines(row)
    return {line["seed"]: line["result"]["student"]["accuracy"] for line in lines}


def test_a_line_a_row_and_seed_in_the_tables_order(tmp_path: Path) -> None:
    put(ROW, 2, 0.7, tmp_path)
    put(ROW, 0, 0.8, tmp_path)
    put(ROW, 2, 0.9, tmp_path)
    record(TABLE, TABLE["rows"][0], 1, tmp_path / "run0", tmp_path / "results", now=True)  # type: ignore[arg-type]
    assert accuracies(ROW, tmp_path) == {0: 0.8, 2: 0.9}
    lines = read_lines(tmp_path / "results" / "some.jsonl")
    assert [(x["row"], x["seed"]) for x in lines] == [("first", 1), ("x", 0), ("x", 2)]
    assert Kept(tmp_path / "results").results(ROW)[1]["versions"] == {
        "torch": "2.14.1",
        "threads": 2,
    }


def test_a_line_says_what_computed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "commit", lambda: "1234567-dirty")
    monkeypatch.setattr(records.os, "getloadavg", lambda: (1.254, 0.0, 0.0))
    monkeypatch.setattr(records.os, "cpu_count", lambda: 6)
    put(ROW, 0, 0.8, tmp_path)
    put(ROW, 1, 0.9, tmp_path, now=False)
    new, old = Kept(tmp_path / "results").lines(ROW)
    assert (new["commit"], new["host"]) == ("1234567-dirty", {"cores": 6, "load": 1.25})
    assert (old["commit"], old["host"]["load"]) == (None, None)  # of another day, and nobody knows
    assert new["date"] == datetime.datetime.now(datetime.UTC).date().isoformat()
    record(TABLE, ROW, 0, tmp_path / "run0", tmp_path / "results", now=False)
    assert Kept(tmp_path / "results").lines(ROW)[0] == new  # the same run, which knew


def test_the_commit_is_marked_where_the_tree_was_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.commit() is None

    def git(*words: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True)

    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    code, kept = tmp_path / "train.py", tmp_path / "benchmarks" / "results" / "some.jsonl"
    for file in (code, kept):
        file.write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")
    clean = records.commit()
    kept.write_text("2")
    assert records.commit() == clean
    code.write_text("2")
    assert records.commit() == f"{clean}-dirty"


def test_two_processes_keep_both_their_lines(tmp_path: Path) -> None:
    """Each reads and writes the file forty times; without the lock lines are lost."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.records import keep\n"
        "rows = [{'name': str(n), 'overrides': [], 'seeds': [0, 1]} for n in range(40)]\n"
        "for row in rows:\n"
        "    line = {'row': row['name'], 'seed': int(sys.argv[1])}\n"
        "    line |= {'overrides': [], 'settings': {}}\n"
        "    keep({'name': 'some', 'rows': rows}, [line], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code]
    both = [
        subprocess.Popen([*command, str(seed), str(tmp_path)], cwd=records.ROOT) for seed in (0, 1)
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(read_lines(tmp_path / "some.jsonl")) == 80


def test_a_changed_command_is_named_and_its_lines_stay_until_the_row_runs_again(
    tmp_path: Path,
) -> None:
    put(ROW, 0, 0.8, tmp_path)
    put(ROW, 1, 0.7, tmp_path)
    assert Kept(tmp_path / "results").changed(ROW) == []
    other = {**ROW, "overrides": ["method=dafl"]}
    assert Kept(tmp_path / "results").changed(other) == [COMMAND]
    assert accuracies(other, tmp_path) == {0: 0.8, 1: 0.7}
    put(other, 1, 0.9, tmp_path)
    assert accuracies(other, tmp_path) == {1: 0.9}  # one mean is never of two commands


def test_a_chosen_file_that_changed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(records.CONFIGS, configs)
    monkeypatch.setattr(records, "CONFIGS", configs)
    put(ROW, 0, 0.8, tmp_path)
    method, other = configs / "method" / "dfq.yaml", configs / "method" / "dafl.yaml"
    written = method.read_text()
    for file, text, changed in (
        (other, "steps: 1", []),
        (method, "# a word\n" + written, []),
        (method, written.replace("batch_size: ", "batch_size: 1"), ["configs/method/dfq.yaml"]),
        (method, written, []),
        (configs / "loss" / "rkd.yaml", "a: 1", ["configs/loss/rkd.yaml"]),
    ):
        file.write_text(text)
        assert Kept(tmp_path / "results").changed(ROW) == changed
    put(ROW, 1, 0.9, tmp_path)
    assert accuracies(ROW, tmp_path) == {1: 0.9}  # the other was of other settings


def test_what_is_kept_belongs_to_rows() -> None:
    """A row that is renamed or removed takes its lines along."""
    for file in reproduce.RECORDS.glob("*.jsonl"):
        [table] = [table for table in TABLES if table["name"] == file.stem]
        order = [(row["name"], seed) for row in table["rows"] for seed in row["seeds"]]
        lines = [(line["row"], line["seed"]) for line in read_lines(file)]
        assert lines == sorted(set(lines), key=order.index)


def test_a_file_changes_with_those_that_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "CONFIGS", tmp_path)
    (tmp_path / "model").mkdir()
    base, own = tmp_path / "model" / "base.yaml", tmp_path / "model" / "own.yaml"
    own.write_text(yaml.safe_dump({"defaults": ["base", {"override /data": "x"}, "_self_"]}))
    seen = set()
    for text in ("width: 1", "width: 2"):
        base.write_text(text)
        seen.add(digest("model/own"))
    base.unlink()
    seen.add(digest("model/own"))
    assert len(seen) == 3
    assert digest("model/base") == ""


@pytest.mark.parametrize("key", ["cifar10", "cifar100"])
def test_data_from_a_file_is_where_a_row_runs_and_not_what_it_is(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe, classes and normalisation stay the row's, and its result is kept."""
    row = {"name": "x", "overrides": ["method=kd", f"data={key}"], "seeds": [0]}
    file = tmp_path / "a file.npz"
    images, labels = np.zeros((100, 32, 32, 3), np.uint8), np.arange(100) % 10
    parts = {"images": images, "labels": labels}
    splits = {f"{split}_{k}": v for split in ("train", "test") for k, v in parts.items()}
    np.savez(file, **splits)
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        commands.append(command)
        left_in(tmp_path / "runs" / "x" / "seed0", result(0.9))

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    monkeypatch.setattr(reproduce, "RECORDS", tmp_path / "results")
    table = {"name": "some", "rows": [row]}
    reproduce.run_row(table, row, tmp_path / "runs", ["data=npz", f"data.path={file}"], dry=False)
    assert accuracies(row, tmp_path) == {0: 0.9}
    own, here = compose(row["overrides"]), compose(commands[0][2:])
    assert here.choices == own.choices
    assert here.data.training == own.data.training
    assert here.data.dataset.classes == own.data.dataset.classes
    spec = build_dataset(plain(here), Runtime("cpu")).spec
    assert (spec.mean, spec.std) == MOMENTS[key.upper(), 32]


def test_other_data_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "x", "overrides": ["data=cifar10"], "seeds": [0]}
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(reproduce, "RECORDS", tmp_path / "results")
    for other in ("data=cifar100", "data.dataset={_target_: data.files.npz, path: x.npz}"):
        table = {"name": "some", "rows": [row]}
        reproduce.run_row(table, row, tmp_path / "runs", [other], dry=False)
    assert not (tmp_path / "results").exists()


def test_the_files_of_a_run_are_named(tmp_path: Path) -> None:
    choices = {"method": "kd", "teacher": "wrn(depth=22)", "student": "wrn", "loss": ["at", "rkd"]}
    for needed, checkpoint, recipe in (
        (True, None, ["method/scratch"]),
        (True, "a.safetensors", []),
        (False, None, []),
    ):
        config = {
            "choices": choices,
            "needs_teacher": needed,
            "teacher": {"checkpoint": checkpoint},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        assert chosen(tmp_path) == ["loss/at", "loss/rkd", "method/kd", *recipe, "model/wrn"]


HALF = "student.model.embed_dim=32"  # of the width


@pytest.mark.parametrize(
    ("experiment", "row"),
    [
        ("digits_to_edges", "crossmodal-soft_labels"),
        ("digits_to_edges method=c2kd steps=400 shuffled_pairs=true", "crossmodal-c2kd-shuffled"),
        ("digits_to_edges method=kd loss=at", "crossmodal-kd-at"),
        ("digits_to_edges_alone", "crossmodal-alone"),
        ("digits_to_edges_without_data", "crossfree-edges-reverie"),
        ("digits_to_edges_without_data student.transform=fourier", "crossfree-fourier-reverie"),
        ("written_to_spoken", "labelpairs-kd"),
        (f"digits_to_edges_vit {HALF} loss=minilm shuffled_pairs=true", "crossvit-minilm-shuffled"),
        (f"digits_to_edges_vit_without_data {HALF} ~synthesis.losses.bn", "crossvit-free-plain"),
    ],
)
def test_an_experiment_is_the_row_that_it_names(experiment: str, row: str) -> None:
    [found] = [r for table in TABLES for r in table["rows"] if r["name"] == row]
    length = [f"budget={found['seconds']}s"] if "seconds" in found else []  # or by its steps
    overrides = [*found["overrides"], *length]
    a, b = (plain(compose(given)) for given in (f"experiment={experiment}".split(), overrides))
    a["choices"].pop("experiment")
    b["choices"].pop("experiment", None)
    assert a == b


def test_one_seed_of_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["crossfree-edges", "--seeds", "1", "7", "--list", "--", "device=cpu"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
    assert reproduce.main() == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 5  # seed 1 of five rows; none has a seed 7
    assert all(" seed=1 " in command and "device=cpu" in command for command in commands)
