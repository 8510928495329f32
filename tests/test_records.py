"""What is kept of a row, and when it holds no longer."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import records, reproduce
from benchmarks.records import chosen, digest, record, recorded
from core.runtime import Runtime
from data.builtin import MOMENTS
from engine.config import compose, plain
from engine.parts import build_dataset
from tests.test_benchmarks import left_in, result


def test_results_are_kept_until_the_command_changes(tmp_path: Path) -> None:
    row = {"name": "x", "overrides": ["method=dfq"]}
    for seed, accuracy in ((2, 0.7), (0, 0.8), (2, 0.9)):
        record(row, seed, left_in(tmp_path / f"{seed}-{accuracy}", result(accuracy)), tmp_path)
    kept = recorded(row, tmp_path)
    assert {seed: r["student"]["accuracy"] for seed, r in kept.items()} == {"0": 0.8, "2": 0.9}
    assert kept["2"]["versions"] == {"torch": "2.14.1", "threads": 2}
    assert recorded({**row, "overrides": ["method=dafl"]}, tmp_path) == {}


def test_results_are_kept_until_a_file_that_they_chose_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(records.CONFIGS, configs)
    monkeypatch.setattr(records, "CONFIGS", configs)
    row = {"name": "x", "overrides": []}
    record(row, 0, left_in(tmp_path / "run", result(0.8)), tmp_path)
    method, other = configs / "method" / "dfq.yaml", configs / "method" / "dafl.yaml"
    written = method.read_text()
    for file, text, holds in (
        (other, "steps: 1", True),
        (method, "# a word\n" + written, True),
        (method, written.replace("batch_size: ", "batch_size: 1"), False),
        (method, written, True),
        (configs / "loss" / "rkd.yaml", "a: 1", False),
    ):
        file.write_text(text)
        assert bool(recorded(row, tmp_path)) == holds
    record(row, 1, left_in(tmp_path / "again", result(0.9)), tmp_path)
    assert [*recorded(row, tmp_path)] == ["1"]  # the other was of other settings


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
    reproduce.run(row, tmp_path / "runs", ["data=npz", f"data.path={file}"], dry=False)
    assert recorded(row, tmp_path / "results")["0"]["student"]["accuracy"] == 0.9
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
        reproduce.run(row, tmp_path / "runs", [other], dry=False)
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
        assert chosen(tmp_path) == ["method/kd", *recipe, "model/wrn", "loss/at", "loss/rkd"]
