"""Soft labels that count where the student is behind the teacher."""

import math

import pytest
import torch
from torch import Tensor

from data.spec import Batch
from distillers.response import KD
from distillers.weighting import WSLD
from models.classifier import Outputs


def logits(seed: int, rows: int = 6, classes: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def apply(loss: torch.nn.Module, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
    x = torch.zeros(len(s), 1)
    value: Tensor = loss(Outputs(s), Outputs(t), Batch(x, label))
    return value


def test_equals_the_paper_input_by_input() -> None:
    s, t, label = logits(0), logits(1), torch.arange(6) % 5
    values = []
    for a, b, y in zip(s, t, label.tolist(), strict=True):
        ratio = math.log(a.softmax(0)[y].item()) / math.log(b.softmax(0)[y].item())
        p, q = (b / 2).softmax(0), (a / 2).softmax(0)
        values.append((1 - math.exp(-ratio)) * 4 * (p * (p / q).log()).sum())
    value = apply(WSLD(temperature=2), s, t, label)
    torch.testing.assert_close(value, torch.stack(values).mean(), rtol=1e-5, atol=0)


def test_the_gradient_is_that_of_weighted_soft_labels() -> None:
    """As the authors have it: −Σ w·p_t·log p_s, where w is a constant."""
    s, t, label = logits(0).requires_grad_(), logits(1), torch.arange(6) % 5
    losses = [torch.nn.functional.cross_entropy(x, label, reduction="none") for x in (s, t)]
    w = 1 - (-losses[0] / (losses[1] + 1e-7)).exp().detach()
    soft = -((t / 4).softmax(1) * (s / 4).log_softmax(1)).sum(1)
    expected = torch.autograd.grad(16 * (w * soft).mean(), s)[0]
    torch.testing.assert_close(torch.autograd.grad(apply(WSLD(), s, t, label), s)[0], expected)


def test_a_student_far_behind_learns_all_and_one_ahead_nothing() -> None:
    label = torch.zeros(1, dtype=torch.long)
    sure, wrong = (torch.tensor([[x, 0.0, 0.0]], dtype=torch.float64) for x in (30.0, -30.0))
    assert apply(WSLD(), wrong, sure, label) == pytest.approx(
        apply(KD(4.0), wrong, sure, label).item()
    )
    assert apply(WSLD(), sure, wrong, label) < 1e-9 * apply(KD(4.0), sure, wrong, label)
