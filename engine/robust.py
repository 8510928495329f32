"""Accuracy under attack."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.runtime import Runtime
from distillers.attacks import Norm, pgd
from models.classifier import Classifier


def robust_accuracy(
    network: Classifier,
    split: Any,
    runtime: Runtime,
    epsilon: float,
    norm: Norm = "inf",
    steps: int = 20,
    batch_size: int = 500,
) -> float:
    """Accuracy of a network, in eval mode, on inputs that PGD on their cross-entropy has moved.

    An upper bound of the true one: PGD finds most, not all, of what fools a network, and less where
    gradients are masked. Publish figures of AutoAttack beside it.

    The random start depends on nothing but a batch's place, so the figure is the same in a run
    that was resumed, and on any number of processes, which share the split.

    Args:
        network: is seen through a frozen view, whose answers no meter counts.
        split: an opened split with labels.
        runtime: of the run.
        epsilon: radius of the ball, as a share of the value range.
        norm: of the ball.
        steps: of the attack, each of 2.5·ε/steps.
        batch_size: of the evaluation.

    Returns:
        A fraction.

    Raises:
        ValueError: for a split without labels.
    """
    if not split.labelled:
        raise ValueError("robust accuracy needs labels, and this split has none")
    view = network.frozen()
    right = torch.zeros((), device=runtime.device)
    with network.uncounted():
        for i, (x, label) in enumerate(split.batches(batch_size)):
            if i % runtime.world_size == runtime.rank:
                noise = torch.Generator(runtime.device).manual_seed(i)
                right += _right(view, x, label, runtime, (epsilon, steps, norm), noise)
    return float(runtime.sum(right)) / len(split)


def _right(
    view: Classifier,
    x: Tensor,
    label: Tensor,
    runtime: Runtime,
    attack: tuple[float, int, Norm],
    noise: torch.Generator,
) -> Tensor:
    """How many of the inputs a network still gets right."""
    epsilon, steps, norm = attack

    def logits(x: Tensor) -> Tensor:
        with runtime.autocast():
            return view(x).logits  # type: ignore[no-any-return]

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(logits(x), label, reduction="sum")

    size = 2.5 * epsilon / steps
    attacked = pgd(loss, x, view.takes, epsilon, size, steps, norm, "uniform", noise)
    with torch.no_grad():
        return (logits(attacked).argmax(1) == label).sum()


class RobustAccuracy:
    """:func:`robust_accuracy` as a part under ``metrics``.

    Args:
        epsilon: radius of the ball, as a share of the value range.
        norm: of the ball.
        steps: of the attack.
    """

    needs_label = True

    def __init__(self, epsilon: float, norm: Norm = "inf", steps: int = 20) -> None:
        self.epsilon, self.norm, self.steps = epsilon, norm, steps

    def __call__(self, network: Classifier, split: Any, runtime: Runtime) -> float:
        return robust_accuracy(network, split, runtime, self.epsilon, self.norm, self.steps)
