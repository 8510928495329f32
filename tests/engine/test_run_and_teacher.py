"""A run and the file of its teacher: replaced under its name, or about to be removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import train
from models.digits import DigitsCNN
from models.pretrained import load_classifier, save_network
from tests.engine.runs import contents


def test_another_teacher_under_the_same_name_is_noticed(
    tiny: list[str], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "teacher.safetensors"
    shutil.copy(teacher, file)
    arguments = [*tiny, f"teacher.checkpoint={file}", f"run_dir={tmp_path / 'run'}", "steps=4"]
    assert train.main(arguments) == 0
    assert train.main(arguments) == 0
    assert "other content" not in capsys.readouterr().out
    network = load_classifier(DigitsCNN(1, 10, 8), file)
    with torch.no_grad():
        next(network.module.parameters()).mul_(1.01)
    save_network(file, network, {})
    assert train.main(arguments) == 0
    assert "the file of teacher.checkpoint has other content than when" in capsys.readouterr().out
    (tmp_path / "run" / "result.json").unlink()
    assert train.main(arguments) == 0
    assert "these have changed, and so may its bits: teacher.checkpoint" in capsys.readouterr().out


def test_overwrite_keeps_a_run_whose_student_is_the_teacher(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}", "steps=4"]
    assert train.main(arguments) == 0
    first = contents(tmp_path / "run")
    file = tmp_path / "run" / "student.safetensors"
    own = ["teacher.model.width=4", "teacher=digits_cnn_small", f"teacher.checkpoint={file}"]
    assert train.main([*arguments, *own, "overwrite=true"]) == 1
    assert f"overwrite=true would remove {file}, which this run reads" in capsys.readouterr().err
    assert contents(tmp_path / "run") == first
