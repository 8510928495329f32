"""A student is rebuilt from its run directory, which runs no code of whoever wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.student import architecture, student_of
from tests.tools.students import CLASSES, made, node_of, raw

SMALL = node_of("digits_cnn_small", width=4)
STUDENT = "choices: {}\nstudent: {model: {_target_: "


def test_the_student_is_the_one_that_was_saved(tmp_path: Path) -> None:
    student = made(tmp_path / "run", SMALL, (1, 8, 8), range=(-1.0, 1.0))
    again = student_of(tmp_path / "run")
    assert (again.spec, again.classes) == (student.spec, CLASSES)
    assert torch.equal(again(raw(student, 3)).logits, student(raw(student, 3)).logits)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "touch hacked"},
        {"_target_": "engine.run.os.system", "command": "touch hacked"},
        {"_target_": "models.checkpoint.save_network", "path": "hacked"},
        {"_target_": "strange.Net"},
        node_of("simkd") | {"backbone": {"_target_": "strange.Net"}},
        SMALL | {"width": [{"_target_": "strange:Net"}]},
    ],
)
def test_other_code_is_not_run(
    node: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange.py").write_text("open('hacked', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    made(tmp_path / "run", SMALL, (1, 8, 8))
    (tmp_path / "run" / "config.yaml").write_text(
        json.dumps({"choices": {}, "student": {"model": node}})
    )
    with pytest.raises(ValueError, match="no part of this project, so it is not built or imported"):
        student_of(tmp_path / "run")
    assert not (tmp_path / "hacked").exists()


def test_how_a_student_was_trained_is_no_part_of_its_network(tmp_path: Path) -> None:
    made(tmp_path / "run", SMALL | {"_training_": {"_target_": "torch.optim.SGD"}}, (1, 8, 8))
    assert architecture(tmp_path / "run") == SMALL


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("student: [", "not a run.s configuration"),
        ("[1, 2]", "not a run.s configuration"),
        ("choices: {}", "describes no part under student.model"),
        ("choices: {}\nstudent: {model: {width: 4}}", "describes no part under student.model"),
        (
            STUDENT + "models.digits.DigitsCNN, widht: 4}}",
            "student.model.*did you mean 'width'",
        ),
        (
            STUDENT + "models.digits.DigitsCNN, width: '${oc.env:HOME}'}}",
            "student.model.width",
        ),
        (
            STUDENT + "models.wrn.WideResNet, depth: 17, width: 1}}",
            "17",
        ),
    ],
)
def test_a_configuration_that_describes_no_network(text: str, said: str, tmp_path: Path) -> None:
    made(tmp_path / "run", SMALL, (1, 8, 8))
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        student_of(tmp_path / "run")
