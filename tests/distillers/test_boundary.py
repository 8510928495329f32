"""Losses around the rectifier: activation boundaries and the overhaul."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillers.boundary import (
    OFD,
    ActivationBoundary,
    MarginReLU,
    later_counts_more,
    partial_l2,
)
from distillers.connector import Connector
from models.classifier import Outputs
from tests.distillers.features import (
    TAPS,
    apply,
    check_reference,
    leaves,
    outputs,
    prepared,
    random,
)

SHAPE = (4, 5, 4, 4)


def rectified(x: Outputs) -> Outputs:
    return outputs(*(f.relu() for f in x.features.values()))


def test_ab_equals_the_reference(shared: Path) -> None:
    check_reference("activation_boundary_margin1", ActivationBoundary(TAPS), shared)


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_ab_by_hand(margin: float) -> None:
    shapes = ((3, 2, 2, 2), (3, 4))
    student, teacher = random(0, *shapes), random(1, *shapes)
    total = 0.0
    for tap, weight in (("a", 0.5), ("b", 1.0)):
        for s, t in zip(
            student.features[tap].flatten().tolist(),
            teacher.features[tap].flatten().tolist(),
            strict=True,
        ):
            if t > 0 and s < margin:
                total += 3e-3 * weight * (margin - s) ** 2 / 3
            if t <= 0 and s > -margin:
                total += 3e-3 * weight * (margin + s) ** 2 / 3
    for loss in (
        ActivationBoundary(TAPS[:2], margin),
        prepared(ActivationBoundary(TAPS[:2], margin), student, teacher),
    ):
        assert apply(loss, student, teacher).item() == pytest.approx(total)


def test_ab_is_content_with_the_teachers_signs_outside_the_margin() -> None:
    teacher = random(1, SHAPE)
    t = teacher.features["a"]
    student = outputs((t.sign() * (1 + random(0, SHAPE).features["a"].abs())).requires_grad_())
    value = apply(ActivationBoundary(["a"]), student, teacher)
    assert value == 0
    assert torch.equal(apply(ActivationBoundary(["a"]), student, rectified(teacher)), value)
    assert apply(ActivationBoundary(["a"]), outputs(-t), teacher) > 0


def test_ab_connects_where_channels_differ_or_the_student_is_rectified() -> None:
    student, teacher = random(0, SHAPE), random(1, SHAPE)
    wide = random(1, (4, 7, 4, 4))

    def connected(s: Outputs, t: Outputs) -> bool:
        return bool(list(prepared(ActivationBoundary(["a"]), s, t).parameters()))

    assert not connected(student, teacher)
    assert not connected(student, rectified(teacher))
    assert connected(rectified(student), teacher)
    assert connected(student, wide)


def test_ab_reaches_units_that_the_students_relu_switched_off() -> None:
    before = random(0, SHAPE).features["a"]
    student, teacher = outputs(before.relu()), random(1, SHAPE)
    loss = prepared(ActivationBoundary(["a"]), student, teacher)
    apply(loss, outputs(*leaves(student)), teacher).backward()
    gradient = student.features["a"].grad
    assert gradient is not None
    assert gradient[before < 0].any()


def test_a_margin_must_be_positive() -> None:
    with pytest.raises(ValueError, match="margin"):
        ActivationBoundary(margin=0)


def test_a_margin_is_the_mean_of_what_is_negative() -> None:
    rectifier = MarginReLU(3).double()
    x = torch.tensor([[-1.0, -3.0, 2.0], [4.0, 1.0, 0.0], [-0.5, 9.0, -0.1]], dtype=torch.float64)
    margins = torch.tensor([-2.0, 0.0, -0.3], dtype=torch.float64)[:, None]
    for _ in range(3):  # whatever the number of batches
        torch.testing.assert_close(rectifier(x[None]), x[None].maximum(margins))
    rectifier.eval()
    torch.testing.assert_close(rectifier(-x[None]), (-x[None]).maximum(margins))
    assert torch.equal(rectifier(-x[None]), rectifier(-x[None]))


def test_margins_follow_the_inputs_weighted_by_what_is_negative() -> None:
    rectifier = MarginReLU(1).double()
    first = torch.tensor([[[-1.0, -1.0, -1.0, 1.0]]], dtype=torch.float64)
    second = torch.tensor([[[-5.0, 1.0, 1.0, 1.0]]], dtype=torch.float64)
    rectifier(first)
    expected = (0.9 * -3 + -5) / (0.9 * 3 + 1)
    assert rectifier(second).min().item() == pytest.approx(expected)


def test_margins_of_a_batchnorm_are_those_of_a_gaussian() -> None:
    """The authors' closed form, E[x | x < 0] of N(β, γ²), in the limit of many inputs."""
    mean, deviation = torch.tensor([0.5, -1.0]), torch.tensor([1.0, 2.0])
    torch.manual_seed(0)
    x = mean[:, None] + deviation[:, None] * torch.randn(1, 2, 200_000)
    normal = torch.distributions.Normal(0.0, 1.0)
    below = -mean / deviation
    expected = mean - deviation * normal.log_prob(below).exp() / normal.cdf(below)
    torch.testing.assert_close(MarginReLU(2)(x).amin((0, 2)), expected, rtol=0.01, atol=0)


def test_partial_l2_by_hand() -> None:
    s = torch.tensor([[[-3.0, -1.0, 2.0, -1.0]], [[0.0, 3.0, -0.5, 0.5]]])
    t = torch.tensor([[[-2.0, -2.0, 1.0, 1.0]], [[-0.5, 0.0, 0.0, 3.0]]])
    counted = [0.0, 1.0, 1.0, 4.0, 0.25, 9.0, 0.0, 6.25]
    assert partial_l2(s, t).item() == pytest.approx(sum(counted) / 2)


def test_ofd_by_hand() -> None:
    shapes = ((8, 3, 4, 4), (8, 2, 2, 2))
    student, teacher = random(0, *shapes), random(1, (8, 5, 4, 4), (8, 2, 4, 4))
    loss = prepared(OFD(TAPS[:2]), student, teacher)
    total = torch.zeros((), dtype=torch.float64)
    pooled = nn.functional.avg_pool2d(teacher.features["b"], 2)
    for i, (tap, t) in enumerate((("a", teacher.features["a"]), ("b", pooled))):
        connector: Any = loss.connectors[i]
        s = connector.adapter.projection(student.features[tap])
        mean, variance = s.mean((0, 2, 3)), s.var((0, 2, 3), correction=0)
        s = (s - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
        margins = [t[:, c][t[:, c] < 0].mean() for c in range(t.shape[1])]
        target = t.maximum(torch.stack(margins)[:, None, None])
        value = (s - target).square() * ~((s <= target) & (target <= 0))
        total = total + value.sum() / 8 / 2 ** (1 - i)
    torch.testing.assert_close(apply(loss, student, teacher), total)


def test_ofd_after_the_relu_has_no_margin() -> None:
    student, teacher = random(0, SHAPE), rectified(random(1, SHAPE))
    loss = prepared(OFD(["a"]), student, teacher)
    s, t = loss.connectors[0](student.features["a"], teacher.features["a"])
    torch.testing.assert_close(apply(loss, student, teacher), partial_l2(s, t))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((4, 3, 4, 4), (4, 5, 8, 8), (4, 5, 16)),
        ((4, 17, 3), (4, 17, 5), (4, 5, 17)),
        ((4, 3), (4, 5), (4, 5, 1)),
    ],
)
def test_connectors_normalise_each_channel(
    student: tuple[int, ...], teacher: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(student), torch.randn(teacher)
    a, b = Connector(s, t, always=False)(s, t)
    assert a.shape == b.shape == expected
    assert a.mean((0, 2)).abs().max() < 1e-5
    torch.testing.assert_close(a.var((0, 2), correction=0), torch.ones(5), rtol=1e-2, atol=0)


def test_later_taps_count_more() -> None:
    losses: list[Tensor] = [torch.tensor(x) for x in (4.0, 6.0, 1.0)]
    assert later_counts_more(losses) == 1 + 3 + 1
