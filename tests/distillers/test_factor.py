"""Factor transfer: the distance, and who learns from what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.spec import Batch
from distillers.base import TransferLoss
from distillers.factor import FactorTransfer, Paraphraser, factor_distance
from models.classifier import Outputs
from tests.distillers.features import apply, check_reference, leaves, outputs, prepared, random


class Distance(TransferLoss):
    """The distance alone, of features as they are."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return factor_distance(*self.pairs(student, teacher)[0])


def test_equals_the_reference(shared: Path) -> None:
    check_reference("factor_transfer", Distance(["a"]), shared)


@pytest.mark.parametrize(("p1", "p2"), [(2, 1), (1, 2), (3, 1)])
def test_the_distance_by_hand(p1: int, p2: int) -> None:
    s, t = (random(seed, (2, c, 2, 3)).features["a"] for seed, c in ((0, 3), (1, 5)))
    total = 0.0
    for i in range(2):
        q = [(x[i].abs() ** p1).sum(0) / len(x[i]) for x in (s, t)]
        q = [x / x.square().sum().sqrt() for x in q]
        total += sum(abs(float(d)) ** p2 for d in (q[0] - q[1]).flatten()) / 12
    assert factor_distance(s, t, p1, p2).item() == pytest.approx(total)
    assert factor_distance(-7 * s, s, p1, p2) < 1e-12


def make(**options: Any) -> tuple[FactorTransfer, Outputs, Outputs]:
    student, teacher = random(0, (4, 3, 4, 4)), random(1, (4, 6, 8, 8))
    return prepared(FactorTransfer(["a"], **options), student, teacher), student, teacher


def gradients(loss: FactorTransfer, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
    inputs = leaves(student)
    loss.zero_grad()
    apply(loss, outputs(*inputs), teacher).backward()
    found = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    assert len(found) == len(list(loss.parameters()))  # or DDP would wait for the others
    assert inputs[0].grad is not None
    found["student"], inputs[0].grad = inputs[0].grad, None
    return found


def test_the_paraphraser_learns_from_its_reconstruction_alone() -> None:
    loss, student, teacher = make(reconstruction=0.3)
    _, error = loss.paraphrasers[0](torch.nn.functional.avg_pool2d(teacher.features["a"], 2))
    expected = torch.autograd.grad(0.3 * error, list(loss.paraphrasers.parameters()))
    found = gradients(loss, student, teacher)
    for (name, _), gradient in zip(loss.paraphrasers.named_parameters(), expected, strict=True):
        assert gradient.any()
        torch.testing.assert_close(found[f"paraphrasers.{name}"], gradient)


def test_the_student_learns_only_after_the_paraphraser() -> None:
    loss, student, teacher = make(pretraining=0.25)
    for progress, learns in ((0.0, False), (0.249, False), (0.25, True), (0.9, True)):
        loss.at(progress)
        for name, gradient in gradients(loss, student, teacher).items():
            assert bool(gradient.any()) == (learns or name.startswith("paraphrasers")), name
    loss.at(0.0)
    before = apply(loss, student, teacher)
    loss.at(0.3)
    factors, _ = loss.paraphrasers[0](torch.nn.functional.avg_pool2d(teacher.features["a"], 2))
    distance = factor_distance(loss.translators[0](student.features["a"]), factors)
    torch.testing.assert_close(apply(loss, student, teacher) - before, distance)


def test_factors_are_a_share_of_the_teachers_channels() -> None:
    for rate, count in ((0.5, 3), (0.75, 4), (0.01, 1), (2.0, 12)):
        loss, student, teacher = make(rate=rate)
        factors, _ = loss.paraphrasers[0](teacher.features["a"])
        assert factors.shape == (4, count, 8, 8)
        assert loss.translators[0](student.features["a"]).shape == (4, count, 4, 4)


def test_the_reconstruction_does_not_depend_on_the_scale_of_features() -> None:
    """Without biases the auto-encoder commutes with a scale, and its loss is a share."""
    torch.manual_seed(0)
    paraphraser, x = Paraphraser(6, 3).double(), random(1, (4, 6, 8, 8)).features["a"]
    assert all(not p.any() for name, p in paraphraser.named_parameters() if "bias" in name)
    torch.testing.assert_close(paraphraser(100 * x)[1], paraphraser(x)[1])
    for p in paraphraser.decoder[-1].parameters():
        torch.nn.init.zeros_(p)
    torch.testing.assert_close(paraphraser(x)[1], torch.ones((), dtype=torch.float64))


def test_the_paraphraser_reconstructs() -> None:
    torch.manual_seed(0)
    paraphraser = Paraphraser(6, 3)
    basis = torch.randn(6, 2)
    optimizer = torch.optim.Adam(paraphraser.parameters(), lr=0.01)
    for _ in range(150):
        x = torch.einsum("cd,bdhw->bchw", basis, torch.randn(4, 2, 4, 4))
        _, loss = paraphraser(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # of noise, whose mean explains nothing


@pytest.mark.parametrize(
    "options",
    [{"rate": 0}, {"reconstruction": 0}, {"pretraining": 1}, {"pretraining": -0.1}],
)
def test_mistakes(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FactorTransfer(**options)
