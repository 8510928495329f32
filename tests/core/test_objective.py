"""Weights follow their schedules; a loss that is off is not computed, and DDP does not miss it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.objective import Objective, Weighted
from core.schedules import constant, until


class Square(nn.Module):
    """A loss with a parameter, which counts its calls and hears of the run's progress."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.calls = 0
        self.progress = 0.0

    def at(self, progress: float) -> None:
        self.progress = progress

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.scale * x.square().sum()


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


def test_weights_follow_their_schedules() -> None:
    objective = Objective(
        {"square": Weighted(Square(), 2.0, constant(warmup=0.5)), "sum": Weighted(Sum(), 0.5)}
    )
    x = torch.tensor([1.0, 2.0])
    for progress, factor in ((0.25, 0.5), (0.5, 1.0), (0.9, 1.0), (0.25, 0.5)):
        objective.at(progress)
        losses = objective(x)
        assert losses.values["square"].item() == pytest.approx(2.0 * factor * 3.0 * 5.0)
        assert losses.values["sum"].item() == pytest.approx(1.5)
        assert objective.losses["square"].loss.progress == progress


def test_a_loss_that_is_off_costs_nothing_and_keeps_the_graph() -> None:
    loss = Square()
    objective = Objective({"square": Weighted(loss, 2.0, until(0.5)), "sum": Weighted(Sum())})
    objective.at(0.5)
    x = torch.ones(2, requires_grad=True)
    objective(x).total.backward()
    assert loss.calls == 0
    assert loss.scale.grad is not None
    assert loss.scale.grad.item() == 0
    objective.at(0.4)
    objective(x)
    assert loss.calls == 1


def test_all_off() -> None:
    objective = Objective({"sum": Weighted(Sum(), 1.0, until(0.5))})
    objective.at(0.7)
    losses: Any = objective(torch.ones(2))
    assert losses.total.item() == 0


def test_a_weight_of_zero_is_off() -> None:
    """Its value counts as 0 in any case: a method that inherits a loss drops it so."""
    loss = Square()
    losses = Objective({"square": Weighted(loss, 0.0), "sum": Weighted(Sum())})(torch.ones(2))
    assert loss.calls == 0
    assert losses.values["square"].item() == 0
