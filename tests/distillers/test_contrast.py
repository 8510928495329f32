"""Supervised contrast against loops over pairs, its invariances, and its projection heads."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from core.functional import supervised_contrast
from data.spec import Batch
from distillers.base import Side
from distillers.contrast import SupervisedContrast
from models.classifier import Outputs

LABEL = torch.tensor([0, 1, 0, 2, 1, 0])  # class 2 has a single member


def views(seed: int = 0, rows: int = 6, size: int = 5) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, rows, size, generator=random, dtype=torch.float64)
    return a, b


def by_loops(a: Tensor, b: Tensor, label: Tensor, temperature: float) -> float:
    """Khosla et al. 2020, eq. 2, as it stands."""
    z = [row / row.norm() for row in (*a, *b)]
    y = [*label.tolist(), *label.tolist()]
    total = 0.0
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        below = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in others)
        same = [p for p in others if y[p] == y[i]]
        logs = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / below) for p in same]
        total -= sum(logs) / len(same)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
@pytest.mark.parametrize("label", [LABEL, torch.zeros(6, dtype=torch.long), torch.arange(6)])
def test_it_is_the_formula(label: Tensor, temperature: float) -> None:
    a, b = views()
    value = supervised_contrast(a, b, label, temperature).item()
    assert value == pytest.approx(by_loops(a, b, label, temperature), rel=1e-9)


def test_classes_that_are_points_reach_the_bound() -> None:
    """Of B inputs in one class and unit embeddings alike: log(2B − 1), whatever τ."""
    a = torch.ones(4, 3)
    one = torch.zeros(4, dtype=torch.long)
    assert supervised_contrast(a, a, one, 0.1).item() == pytest.approx(math.log(7))
    apart = (
        torch.eye(2).double().repeat_interleave(3, 0)
    )  # two classes at right angles, three inputs each
    value = supervised_contrast(apart, apart, torch.tensor([0, 0, 0, 1, 1, 1]), 0.01)
    assert value.item() == pytest.approx(math.log(5))


def test_length_order_rotation_and_names_do_not_matter() -> None:
    a, b = views()
    value = supervised_contrast(a, b, LABEL, 0.2)
    turn = torch.linalg.qr(views(1, 5)[0])[0]
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    lengths = torch.linspace(0.1, 50, 6, dtype=torch.float64)[:, None]
    for other in (
        supervised_contrast(a * lengths, b / lengths, LABEL, 0.2),
        supervised_contrast(a @ turn, b @ turn, LABEL, 0.2),
        supervised_contrast(a[order], b[order], LABEL[order], 0.2),
        supervised_contrast(b, a, LABEL, 0.2),
        supervised_contrast(a, b, 2 - LABEL, 0.2),
    ):
        torch.testing.assert_close(other, value)
    assert abs(supervised_contrast(a, b, LABEL.roll(1), 0.2) - value) > 1e-3


def sides(student: Tensor, teacher: Tensor) -> tuple[Outputs, Outputs]:
    return Outputs(student, {"pooled": student}), Outputs(teacher, {"pooled": teacher})


def loss(student: Outputs, teacher: Outputs, **kwargs: float) -> SupervisedContrast:
    torch.manual_seed(0)
    made = SupervisedContrast(**{"width": 7, **kwargs})  # type: ignore[arg-type]
    made.prepare(Side(student), Side(teacher))
    return made


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((3,), (3,)), ((3,), (8,)), ((3, 4, 4), (8, 2, 2)), ((6, 2, 2), (17, 5))],
)
def test_features_of_any_kind_and_size(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    s, t = (torch.randn(6, *shape, generator=random) for shape in (student, teacher))
    s.requires_grad_()
    x = torch.zeros(6, 1)
    contrast = loss(*sides(s, t))
    value = contrast(*sides(s, t), Batch(x, LABEL))
    a, b = (
        head(f if f.dim() == 2 else f.mean((2, 3)) if f.dim() == 4 else f.mean(1))
        for head, f in zip(contrast.heads[0], (s, t), strict=True)
    )
    torch.testing.assert_close(value, supervised_contrast(a, b, LABEL, 0.07))
    value.backward()
    parameters = list(contrast.parameters())
    assert len(parameters) == 8
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    assert s.grad is not None
    assert s.grad.abs().sum() > 0
    other = loss(*sides(s, t))
    torch.nn.init.zeros_(other.heads[0][0][0].weight)
    other.load_state_dict(copy.deepcopy(contrast.state_dict()))
    torch.testing.assert_close(other(*sides(s, t), Batch(x, LABEL)), value)


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("scale", [0.0, 1.0, 500.0])
def test_stays_finite(rows: int, scale: float) -> None:
    """One class, one input, features of nothing, and features far apart."""
    s, t = (scale * x[:rows].float() for x in views())
    s.requires_grad_()
    x = torch.zeros(rows, 1)
    for label in (torch.zeros(rows, dtype=torch.long), torch.arange(rows)):
        contrast = loss(*sides(s, t))
        value = contrast(*sides(s, t), Batch(x, label))
        gradient = torch.autograd.grad(value, [s, *contrast.parameters()])
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradient)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"width": 0}])
def test_settings_that_do_not_fit(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        SupervisedContrast(**wrong)  # type: ignore[arg-type]
