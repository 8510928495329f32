"""Which methods a plan names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import train
from core.runtime import Runtime
from engine.config import compose, plain
from engine.parts import build_dataset, offered
from engine.plan import methods_for
from engine.teacher_file import blank_teacher
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.pretrained import freeze
from tests.user_parts import forgotten, written_parts


def test_methods_that_do_not_fit_are_named_with_the_reason() -> None:
    """By what they read of the teacher to synthesize, and of both networks to transfer."""
    settings, runtime = plain(compose(["teacher=lenet5", "data.size=32"])), Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    teacher = freeze(blank_teacher(settings, dataset))
    assert isinstance(teacher, Classifier)
    stageless = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    student = Classifier(stageless, teacher.spec, teacher.classes)
    available = offered(settings, dataset, teacher, runtime) | {"student": student}
    fit, unfit = methods_for(teacher, settings["generator"], available)
    assert {"dfad", "dfme", "zskd"} <= set(fit)
    assert "reverie" in unfit["it inverts BatchNorm statistics, and the teacher has none"]
    assert any("zskt" in names and "stage1" in why for why, names in unfit.items())


def test_methods_that_refuse_the_modality_are_not_proposed() -> None:
    settings, runtime = plain(compose(["data=two_tones", "data.dataset.count=40"])), Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    teacher = freeze(blank_teacher(settings, dataset))
    assert isinstance(teacher, Classifier)
    available = offered(settings, dataset, teacher, runtime) | {"student": teacher}
    fit, unfit = methods_for(teacher, settings["generator"], available)
    assert {"reverie", "dfme"} <= set(fit)
    assert unfit["it does not take signals"] == ["mosaickd", "nayer", "pre_dfkd"]


def test_a_users_methods_are_named_and_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a run without data; one with a mistake in its file, which is not chosen, ends nothing."""
    torch.save(DigitsCNN(1, 10, 8).state_dict(), tmp_path / "net.pth")
    arguments = ["data=none", "teacher=digits_cnn", "teacher.model.width=8", "student=tiny"]
    arguments += ["teacher.shape=[1,8,8]", "teacher.classes=10", "teacher.mean=[0]"]
    arguments += ["teacher.std=[1]", f"teacher.checkpoint={tmp_path / 'net.pth'}", "device=cpu"]
    arguments += ["method=dafl", "generator=small", "batch_size=8", "steps=2", "probe.size=12"]
    few = "['synthesizer.iterations=2', 'steps=1']"
    arguments += [f"probe.methods={{calm: ['steps=2'], zskd: {few}}}"]
    with forgotten(written_parts(tmp_path / "parts")) as folder:
        wrong = "data_free: true\ndistiller: {losses: {x: {loss: {_target_: gone.X}}}}\n"
        (folder / "method" / "wrong.yaml").write_text(f"# @package _global_\n{wrong}")
        assert train.main([f"config_path={folder}", *arguments]) == 0
    said = capsys.readouterr().out
    assert " calm " in next(line for line in said.splitlines() if "these apply as well" in line)
    assert "not wrong: there is a mistake in its file" in said
    assert "measuring: calm synthesizes 12 inputs" in said
