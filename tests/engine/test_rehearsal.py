"""Mistakes that only a step shows are said before anything is trained, and nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.runtime import Runtime
from data.spec import Batch
from distillers.base import TransferLoss
from engine.config import compose, plain
from engine.parts import build_dataset, build_parts
from engine.rehearsal import rehearse
from engine.teacher import rehearse_blank
from engine.teacher_file import blank_teacher
from engine.train import run
from generators.base import Synthesis, SynthesisLoss
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN
from models.pretrained import freeze
from tests.engine.runs import TINY

HERE = "tests.engine.test_rehearsal"


class Spare(DigitsCNN):
    """With a parameter that no forward uses."""

    def __init__(self, in_channels: int, num_classes: int, width: int = 4) -> None:
        super().__init__(in_channels, num_classes, width)
        self.spare = nn.Parameter(torch.zeros(3))


class Complex(DigitsCNN):
    """With weights that an optimizer refuses."""

    def __init__(self, in_channels: int, num_classes: int, width: int = 4) -> None:
        super().__init__(in_channels, num_classes, width)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale.real


class Lazy(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(num_classes))


class Untrainable(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.classes]


class Wrong(TransferLoss):
    needs_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return student.logits @ student.logits


class Each(Wrong):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return student.logits.square().sum(1)


class Silent(SynthesisLoss):
    def forward(self, synthesis: Synthesis) -> Tensor:
        return synthesis.nothing  # type: ignore[attr-defined, no-any-return]


def blank(*arguments: str) -> bool:
    """A rehearsal with an untrained teacher, as before a teacher is trained."""
    config = compose([*TINY, *arguments])
    runtime = Runtime("cpu")
    settings = plain(config)
    dataset = build_dataset(settings, runtime)
    teacher = None
    if settings["needs_teacher"]:
        rehearse_blank(settings, dataset, runtime)
        teacher = freeze(blank_teacher(settings, dataset))
    return rehearse(settings, dataset, teacher, runtime)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=kd", "loss=at", "distiller.losses.at.taps=[pooled]"], r"^loss at: .*taps pooled"),
        (["method=kd", f"distiller.losses.kd.loss={{_target_: {HERE}.Wrong}}"], r"^loss kd: mat1"),
        (
            ["method=kd", f"distiller.losses.kd.loss={{_target_: {HERE}.Each}}"],
            r"kd: gives \(16,\)",
        ),
        (
            ["method=dafl", f"synthesis.losses.onehot.loss={{_target_: {HERE}.Silent}}"],
            r"^loss onehot: AttributeError: 'Synthesis' object has no attribute 'nothing'",
        ),
        (
            [
                "method=scratch",
                "~student.model.width",
                f"student.model._target_={HERE}.Untrainable",
            ],
            "the student Untrainable has no trainable parameters",
        ),
        (
            ["method=scratch", f"student.model._target_={HERE}.Complex"],
            "^the optimizer fails at the first step: .*complex64",
        ),
        (
            ["method=dfad", "source.warmup=1"],
            "^every loss of synthesis reads the student.*warmup=0",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_loss(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        blank(*arguments)
    assert "\n" not in str(caught.value)


def test_an_old_run_outlives_a_mistake_in_a_new_one(tmp_path: Path) -> None:
    common = [*TINY, "method=scratch", "steps=2", "evaluations=1", "checkpoints=1"]
    common += ["overwrite=true", f"run_dir={tmp_path / 'run'}"]
    run(compose(common), Runtime("cpu"))
    wrong = f"distiller.losses.cross_entropy.loss={{_target_: {HERE}.Wrong}}"
    with pytest.raises(ValueError, match=r"^loss cross_entropy"):
        run(compose([*common, wrong]), Runtime("cpu"))
    assert (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "run" / "student.safetensors").exists()


def test_parameters_without_gradient_are_found() -> None:
    plain_student = ["method=scratch"]
    assert not blank(*plain_student)
    assert blank(*plain_student, f"student.model._target_={HERE}.Spare")


def test_lazy_networks_of_a_users_are_built() -> None:
    assert not blank("method=scratch", f"student.model={{_target_: {HERE}.Lazy}}")


def test_nothing_that_the_run_uses_changes() -> None:
    config = compose([*TINY, "method=maze"])
    runtime, settings = Runtime("cpu"), plain(config)
    dataset = build_dataset(settings, runtime)
    teacher: Classifier = freeze(blank_teacher(settings, dataset))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    parts, random = build_parts(settings, dataset, teacher, runtime), torch.get_rng_state()
    rehearse(settings, dataset, teacher, runtime)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert parts.counts()["teacher_queries"] == 0
    assert all(p.grad is None for p in parts.distiller.parameters())
