"""A discriminator that tells the teacher's answers from the student's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import TransferLoss
from models.classifier import Outputs


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.factor * gradient, None


def reversed_gradient(x: Tensor, factor: float = 1.0) -> Tensor:
    """``x`` itself, with its gradient times −factor (Ganin and Lempitsky, ICML 2015).

    What comes after it minimises a loss that what comes before it maximises, in one step of one
    optimizer.
    """
    return _Reversal.apply(x, factor)  # type: ignore[no-any-return]


class Discriminator(TransferLoss):
    """The binary cross-entropy of a discriminator D, teacher 1 and student 0, on logits; mean over
    both (MEAL, Shen, He and Xue, AAAI 2019). D minimises it and the student, through a
    gradient reversal, maximises it.

    D has three layers, C → C/2 → C/4 → 1. The authors' has two outputs, for labels [1, 0] and
    [0, 1], and a ReLU after the last: its outputs cannot fall below 0, so neither label's
    probability below 1/2. One output says as much, and is free. Their code also has student and D
    minimise the same loss unless ``--grl`` is given; ours reverses always, as the paper says.
    The authors give D a hundredth of the student's learning rate; here both have the same.

    Args:
        num_classes: C.
        factor: on the gradient that reaches the student, at least 0.

    Raises:
        ValueError: for a factor below 0.
    """

    def __init__(self, num_classes: int, factor: float = 1.0) -> None:
        super().__init__()
        if factor < 0:
            raise ValueError(f"factor must be at least 0, but is {factor}: the sign is reversed")
        self.factor = float(factor)
        half, quarter = max(num_classes // 2, 1), max(num_classes // 4, 1)
        self.layers = nn.Sequential(
            nn.Linear(num_classes, half),
            nn.ReLU(),
            nn.Linear(half, quarter),
            nn.ReLU(),
            nn.Linear(quarter, 1),
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Of logits [B, C]; no gradient reaches the teacher."""
        ours, theirs = reversed_gradient(student.logits, self.factor), teacher.logits.detach()
        scores = self.layers(torch.cat([ours, theirs]))[:, 0]
        truth = torch.cat([torch.zeros_like(ours[:, 0]), torch.ones_like(theirs[:, 0])])
        return F.binary_cross_entropy_with_logits(scores, truth)
