"""Synthesis losses against closed forms, reference values, finite differences, extreme logits."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.spec import InputSpec
from generators.base import Synthesis, SynthesisLoss
from generators.losses import (
    L2,
    Activation,
    Adversarial,
    BatchNormStatistics,
    InformationEntropy,
    OneHot,
    TotalVariation,
)
from models.classifier import Classifier, Outputs, Statistics

SPEC = InputSpec((2, 4, 5), (0.0, 1.0), (0.5, 0.2), (0.5, 0.1))


def synthesis(
    teacher: Tensor | None = None,
    student: Tensor | None = None,
    images: Tensor | None = None,
    label: Tensor | None = None,
    features: dict[str, Tensor] | None = None,
    statistics: list[Statistics] | None = None,
) -> Synthesis:
    none = torch.zeros(1, 1)
    outputs = Outputs(none if teacher is None else teacher, features or {}, statistics or [])
    return Synthesis(
        none if images is None else images,
        outputs,
        None if student is None else Outputs(student),
        label,
    )


def logits(seed: int = 0, scale: float = 2.0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return scale * torch.randn(6, 4, generator=noise, dtype=torch.float64)


def test_one_hot() -> None:
    t, y = logits(), torch.tensor([0, 1, 2, 3, 0, 1])
    log_p = t - t.exp().sum(1, keepdim=True).log()
    torch.testing.assert_close(OneHot()(synthesis(t)), -log_p.max(1).values.mean())
    torch.testing.assert_close(OneHot()(synthesis(t, label=y)), -log_p[range(6), y].mean())


def test_information_entropy() -> None:
    p = logits().softmax(1).mean(0)
    torch.testing.assert_close(InformationEntropy()(synthesis(logits())), (p * p.log()).sum())
    balanced = InformationEntropy()(synthesis(1000 * torch.eye(4)))
    assert balanced.item() == pytest.approx(-math.log(4), abs=1e-5)
    collapsed = InformationEntropy()(synthesis(1000 * torch.eye(4)[:1].expand(4, 4)))
    assert collapsed.item() == pytest.approx(0, abs=1e-6)


def test_activation() -> None:
    loss = Activation(tap="last")
    assert loss.teacher_taps == ("last",)
    f = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    assert loss(synthesis(features={"last": f})).item() == -1.5


def test_adversarial_distances() -> None:
    t, s = logits(0), logits(1)
    p, q = t.softmax(1), s.softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(Adversarial("kl")(synthesis(t, s)), -kl)
    torch.testing.assert_close(Adversarial("l1")(synthesis(t, s)), -F.l1_loss(s, t))
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    m = (p + q) / 2
    js = 0.5 * ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean()
    torch.testing.assert_close(Adversarial("js", temperature=3)(synthesis(t, s)), -js)


def test_js_is_bounded_by_log_2() -> None:
    t = torch.tensor([[1000.0, 0.0]])
    apart = Adversarial("js")(synthesis(t, t.flip(1)))
    assert apart.item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("distance", ["kl", "l1", "js"])
def test_adversarial_is_zero_for_the_teacher_itself_only(distance: str) -> None:
    """Failure 1: an adversarial loss that was always zero."""
    loss = Adversarial(distance)
    assert loss(synthesis(logits(0), logits(0))).item() == pytest.approx(0, abs=1e-12)
    assert loss(synthesis(logits(0), logits(1))).item() < -1e-3


def test_mask_keeps_inputs_on_which_both_agree() -> None:
    t = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    s = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    masked = Adversarial("kl", mask_disagreement=True)(synthesis(t, s))
    torch.testing.assert_close(masked, Adversarial("kl")(synthesis(t[:1], s[:1])) / 2)


def test_gradient_passes_through_teacher_and_student() -> None:
    for distance in ("kl", "l1", "js"):
        t, s = logits(0).requires_grad_(), logits(1).requires_grad_()
        Adversarial(distance)(synthesis(t, s)).backward()
        assert t.grad is not None
        assert t.grad.abs().sum() > 0
        assert s.grad is not None
        assert s.grad.abs().sum() > 0


LOGIT_TERMS: list[Callable[[], SynthesisLoss]] = [
    OneHot,
    InformationEntropy,
    lambda: Adversarial("kl"),
    lambda: Adversarial("l1"),
    lambda: Adversarial("js", temperature=3.0),
    lambda: Adversarial("kl", mask_disagreement=True),
]


@pytest.mark.parametrize("make", LOGIT_TERMS)
def test_logit_losses_gradcheck(make: Callable[[], SynthesisLoss]) -> None:
    t, s = logits(0).requires_grad_(), logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, s: make()(synthesis(t, s)), (t, s))


@pytest.mark.parametrize("make", LOGIT_TERMS)
@pytest.mark.parametrize("gap", [500.0, 1e4])
def test_logit_losses_are_finite_at_large_gaps(
    make: Callable[[], SynthesisLoss], gap: float
) -> None:
    """Failure 9: softmax underflows to 0 here, and its logarithm to minus infinity."""
    t = torch.tensor([[gap, 0.0, 0.0], [gap, 0.0, 0.0], [gap, -gap, 0.0]], requires_grad=True)
    s = torch.tensor([[0.0, gap, 0.0], [gap, 0.0, 0.0], [-gap, gap, 0.0]], requires_grad=True)
    value = make()(synthesis(t, s))
    value.backward()
    assert value.isfinite()
    assert all(x.grad is None or x.grad.isfinite().all() for x in (t, s))


def test_batchnorm_statistics_by_hand() -> None:
    def layer(mean: list[float], variance: list[float]) -> Statistics:
        return Statistics(torch.tensor(mean), torch.tensor(variance), torch.zeros(2), torch.ones(2))

    layers = [layer([3.0, 4.0], [1.0, 1.0]), layer([0.0, 0.0], [1.0, 3.0])]
    assert BatchNormStatistics()(synthesis(statistics=layers)).item() == 5 + 2
    weighted = BatchNormStatistics(first_layer_weight=10)(synthesis(statistics=layers))
    assert weighted.item() == 50 + 2


def test_batchnorm_statistics_against_reference(shared: Path) -> None:
    reference = np.load(shared / "fixtures" / "transfer_losses.npz")
    x = torch.tensor(reference["features_student_0"]).double().requires_grad_()
    norm = torch.nn.BatchNorm2d(x.shape[1]).double()
    net = torch.nn.Sequential(norm, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    spec = InputSpec(tuple(x.shape[1:]), mean=(0.0,) * x.shape[1], std=(1.0,) * x.shape[1])
    outputs = Classifier(net, spec, statistics=True).eval()(x)
    value = BatchNormStatistics()(Synthesis(x, outputs))
    value.backward()
    assert value.item() == pytest.approx(float(reference["value/bn_statistics_l2"]), rel=1e-6)
    gradients = [name for name in reference.files if name.startswith("grad/bn_statistics_l2/")]
    for name in gradients:
        np.testing.assert_allclose(x.grad, reference[name], rtol=1e-5, atol=1e-8)


def test_batchnorm_statistics_have_a_gradient_where_they_match() -> None:
    mean, variance = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    layer = Statistics(mean, variance, torch.zeros(2), torch.ones(2))
    BatchNormStatistics()(synthesis(statistics=[layer])).backward()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()


def test_total_variation() -> None:
    ramp = torch.arange(5.0).expand(1, 2, 4, 5) / 10
    spec = InputSpec((2, 4, 5), mean=(0.0, 0.0), std=(0.1, 0.1))  # steps of 1 once normalised
    expected = {"l1": 3.0, "l2": math.sqrt(2 * 4 * 4) + 2 * math.sqrt(2 * 3 * 4)}
    for norm, value in expected.items():
        assert TotalVariation(spec, norm)(synthesis(images=ramp)).item() == pytest.approx(value)
        flat = TotalVariation(spec, norm)(synthesis(images=torch.ones(1, 2, 4, 5)))
        assert flat.item() == 0
    diagonal = torch.zeros(1, 2, 4, 5)
    diagonal[..., 0, 0] = 0.1  # seen to the right, below and along one diagonal
    assert TotalVariation(spec)(synthesis(images=diagonal)).item() == pytest.approx(3 * 2**0.5)


def test_total_variation_of_other_inputs_is_along_each_axis() -> None:
    line = InputSpec((2, 5), mean=(0.0, 0.0), std=(0.1, 0.1))
    ramp = torch.arange(5.0) / 10
    assert TotalVariation(line, "l1")(synthesis(images=ramp.expand(1, 2, 5))).item() == (
        pytest.approx(1.0)
    )
    loss = TotalVariation(InputSpec((1, 2, 2), mean=(0.0,), std=(0.1,)), "l1")
    volume = torch.zeros(1, 1, 3, 4, 5)
    for axis, size in ((2, 3), (3, 4), (4, 5)):
        along = torch.arange(float(size)) / 10
        shape = [size if d == axis else 1 for d in range(5)]
        loss.spec = InputSpec((1, 4, 5), mean=(0.0,), std=(0.1,))
        value = loss(synthesis(images=volume + along.view(shape)))
        assert value.item() == pytest.approx(1.0), axis


def test_l2() -> None:
    spec = InputSpec((1, 1, 2), mean=(1.0,), std=(2.0,))
    images = torch.tensor([[7.0, 9.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    assert L2(spec)(synthesis(images=images)).item() == pytest.approx((5 + 0) / 2)


@pytest.mark.parametrize("loss", [TotalVariation(SPEC, "l2"), TotalVariation(SPEC, "l1"), L2(SPEC)])
def test_image_priors_gradcheck(loss: SynthesisLoss) -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(2, 2, 4, 5, generator=noise, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(synthesis(images=x)), (x,))


@pytest.mark.parametrize("loss", [TotalVariation(SPEC, "l2"), L2(SPEC)])
def test_image_priors_have_a_gradient_at_zero(loss: SynthesisLoss) -> None:
    x = SPEC.denormalize(torch.zeros(2, 2, 4, 5)).requires_grad_()
    loss(synthesis(images=x)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="'mse' is none of: kl, l1, js"):
        Adversarial("mse")
    with pytest.raises(ValueError, match="'l3' is none of: l1, l2"):
        TotalVariation(SPEC, "l3")
