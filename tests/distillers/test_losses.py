"""Transfer losses against their authors' values and gradients, invariances, and extreme inputs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.spec import Batch
from distillers.attention import AttentionTransfer
from distillers.base import TransferLoss
from distillers.response import (
    DIST,
    DKD,
    KD,
    CrossEntropy,
    LogitL1,
    PredictedLabel,
    StandardizedKD,
)
from distillers.temperature import ATKD, CTKD, GlobalTemperature
from distillers.weighting import WSLD
from models.classifier import Outputs

STAGES = ("stage1", "stage2", "stage3")
FIXTURES = {
    "kd_t4": KD(temperature=4),
    "kd_logit_standardised_t2": StandardizedKD(temperature=2),
    "dkd_alpha1_beta8_t4": DKD(alpha=1, beta=8, temperature=4),
    "dist_beta1_gamma1_tau1": DIST(beta=1, gamma=1, temperature=1),
    "attention_transfer_p2": AttentionTransfer(STAGES),
}
LOGIT_TERMS: list[TransferLoss] = [
    CrossEntropy(),
    CrossEntropy(label_smoothing=0.1),
    KD(),
    KD(temperature=1),
    StandardizedKD(),
    LogitL1(),
    PredictedLabel(),
    DKD(),
    DKD(temperature=1),
    DIST(),
    DIST(temperature=4),
    CTKD(GlobalTemperature()),
    ATKD(),
    WSLD(),
]
DIVERGENCES: list[TransferLoss] = [
    loss for loss in LOGIT_TERMS if not isinstance(loss, (CrossEntropy, LogitL1, PredictedLabel))
]


def describe(loss: TransferLoss) -> str:
    setting = getattr(loss, "temperature", "")
    return f"{type(loss).__name__}-{setting if isinstance(setting, float) else ''}"


def apply(loss: TransferLoss, s: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
    x = torch.zeros(len(s), 1)
    return loss(Outputs(s), Outputs(t), Batch(x, label))


def value_and_gradient(
    loss: TransferLoss, s: Tensor, t: Tensor, label: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    s = s.clone().requires_grad_()
    value = apply(loss, s, t, label)
    return value.detach(), torch.autograd.grad(value, s)[0]


def logits(seed: int = 0, rows: int = 6, classes: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", FIXTURES)
def test_equals_the_reference(name: str, shared: Path) -> None:
    data = np.load(shared / "fixtures" / "transfer_losses.npz")

    def double(key: str) -> Tensor:
        return torch.from_numpy(data[key]).double()

    inputs = {"logits_student": double("logits_student")}
    inputs |= {f"features_student_{i}": double(f"features_student_{i}") for i in range(3)}
    for tensor in inputs.values():
        tensor.requires_grad_()
    student = Outputs(
        inputs["logits_student"],
        {stage: inputs[f"features_student_{i}"] for i, stage in enumerate(STAGES)},
    )
    teacher = Outputs(
        double("logits_teacher"),
        {stage: double(f"features_teacher_{i}") for i, stage in enumerate(STAGES)},
    )
    x = torch.zeros(16, 1)
    value = FIXTURES[name](student, teacher, Batch(x, torch.from_numpy(data["labels"])))
    assert value.item() == pytest.approx(float(data[f"value/{name}"]), rel=1e-9)
    value.backward()
    gradients = [key for key in data if key.startswith(f"grad/{name}/")]
    assert gradients
    for key in gradients:
        gradient = inputs[key.rsplit("/", 1)[1]].grad
        # The reference was rounded to float32, which is exact to 2^-24 of each entry.
        torch.testing.assert_close(gradient, double(key), rtol=6.1e-8, atol=1e-15)


def test_kd_at_temperature_1_is_the_forward_kl() -> None:
    s, t = logits(0), logits(1)
    p, q = t.softmax(1), s.softmax(1)
    expected = (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(apply(KD(temperature=1), s, t), expected)


def test_cross_entropy_and_l1_by_hand() -> None:
    s, t, label = logits(0), logits(1), torch.arange(6) % 5
    expected = -s.log_softmax(1)[torch.arange(6), label].mean()
    torch.testing.assert_close(apply(CrossEntropy(), s, t, label), expected)
    torch.testing.assert_close(apply(LogitL1(), s, t), (s - t).abs().sum() / 30)


def test_dkd_with_the_teachers_weight_is_kd() -> None:
    """Equation 6 of the paper, one input at a time: β = 1 − p_label makes DKD the classic KD."""
    s, t = logits(0), logits(1)
    for i in range(len(s)):
        label = torch.tensor([i % 5])
        rest = 1 - (t[i] / 4).softmax(0)[label].item()
        dkd = apply(DKD(1.0, rest, 4.0), s[i : i + 1], t[i : i + 1], label)
        torch.testing.assert_close(dkd, apply(KD(4.0), s[i : i + 1], t[i : i + 1]))


@pytest.mark.parametrize("loss", DIVERGENCES, ids=describe)
def test_is_invariant_to_a_shift_of_an_inputs_logits(loss: TransferLoss) -> None:
    s, t, label = logits(0), logits(1), torch.arange(6) % 5
    shift = 10 * logits(2, classes=1)
    value = apply(loss, s, t, label)
    torch.testing.assert_close(apply(loss, s + shift, t, label), value)
    torch.testing.assert_close(apply(loss, s, t - shift, label), value)


def test_standardised_kd_is_invariant_to_scale_and_kd_is_not() -> None:
    s, t = logits(0), logits(1)
    value = apply(StandardizedKD(), s, t)
    torch.testing.assert_close(apply(StandardizedKD(), 7 * s, t), value, rtol=1e-6, atol=0)
    assert abs(apply(KD(), 7 * s, t) - apply(KD(), s, t)) > 0.1


@pytest.mark.parametrize("loss", [*DIVERGENCES, LogitL1()], ids=describe)
def test_a_perfect_student_has_zero_loss_and_zero_gradient(loss: TransferLoss) -> None:
    t = logits(0) / 3
    value, gradient = value_and_gradient(loss, t, t, torch.arange(6) % 5)
    # DIST's denominator has an epsilon of 1e-8, and a high τ makes small what is divided by it
    tolerance = 1e-6 * loss.temperature**4 if isinstance(loss, DIST) else 1e-12
    assert value.abs() < tolerance
    assert gradient.abs().max() < tolerance


@pytest.mark.parametrize("loss", LOGIT_TERMS, ids=describe)
def test_the_gradient_of_the_batch_mean_does_not_grow_with_the_batch(loss: TransferLoss) -> None:
    s, t, label = logits(0), logits(1), torch.arange(6) % 5
    one = apply(loss, s, t, label)
    two = apply(loss, s.repeat(2, 1), t.repeat(2, 1), label.repeat(2))
    torch.testing.assert_close(one, two)


def opposed() -> tuple[Tensor, Tensor]:
    """Student and teacher sure of different classes, 500 apart in float32."""
    return 500 * F.one_hot(torch.arange(4), 4).float(), 500 * F.one_hot(
        3 - torch.arange(4), 4
    ).float()


def one_class() -> tuple[Tensor, Tensor]:
    """Every row alike and sure, so that no column of the probabilities varies."""
    row = 500 * F.one_hot(torch.zeros(4, dtype=torch.long), 4).float()
    return row, row.clone()


EXTREMES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "gap of 500": opposed,
    "one class": one_class,
    "one class, wrong": lambda: (opposed()[0][:1].repeat(4, 1), opposed()[1][:1].repeat(4, 1)),
    "constant logits": lambda: (torch.zeros(4, 4), torch.zeros(4, 4)),
    "one input": lambda: (logits(0)[:1].float(), logits(1)[:1].float()),
    "two classes": lambda: (logits(0)[:, :2].float(), logits(1)[:, :2].float()),
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("loss", LOGIT_TERMS, ids=describe)
def test_stays_finite(loss: TransferLoss, extreme: str) -> None:
    s, t = EXTREMES[extreme]()
    for label in (torch.zeros(len(s), dtype=torch.long), t.argmax(1)):
        value, gradient = value_and_gradient(loss, s, t, label)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_a_gap_of_500_still_teaches() -> None:
    s, t = opposed()
    value, gradient = value_and_gradient(KD(temperature=1), s, t)
    assert value == pytest.approx(500)
    assert gradient.abs().sum(1) == pytest.approx(torch.full((4,), 0.5))


@pytest.mark.parametrize("make", [KD, StandardizedKD, DKD, DIST, WSLD])
def test_temperature_must_be_positive(make: type) -> None:
    with pytest.raises(ValueError, match="temperature"):
        make(temperature=0)


def test_label_smoothing_is_a_probability() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossEntropy(label_smoothing=1.5)


def test_the_predicted_label_is_the_label_of_cross_entropy() -> None:
    """At any scale of the teacher's logits, and whatever the batch's own label is."""
    s, t = logits(0), logits(1)
    expected = value_and_gradient(CrossEntropy(), s, t, t.argmax(1))
    for scale, label in ((1.0, None), (1e-3, (t.argmax(1) + 1) % 5)):
        found = value_and_gradient(PredictedLabel(), s, scale * t, label)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
