"""Schedules of learning rates and weights as functions of a run's progress: nothing to resume."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

UNKNOWN = 10**9  # steps of a run whose length is still to be found: no schedule has moved

Factor = Callable[[float], float]
"""Maps progress in [0, 1] to a factor on a learning rate or on a loss's weight."""


def constant(warmup: float = 0.0) -> Factor:
    """1 after a linear warm-up from 0.

    Args:
        warmup: fraction of the run, in [0, 1).
    """
    return _warmed(lambda progress: 1.0, warmup)


def cosine(warmup: float = 0.0, floor: float = 0.0) -> Factor:
    """Half a cosine from 1 down to ``floor`` (Loshchilov & Hutter 2017, eq. 5, without restarts).

    Args:
        warmup: fraction of the run, in [0, 1); the cosine spans the rest.
        floor: the last factor, in [0, 1].
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must lie in [0, 1], but is {floor}")

    def factor(progress: float) -> float:
        done = max(progress - warmup, 0.0) / (1 - warmup)
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2

    return _warmed(factor, warmup)


def multistep(
    milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup: float = 0.0
) -> Factor:
    """``gamma`` to the power of the number of milestones reached.

    Args:
        milestones: ascending fractions of the whole run, each in (0, 1).
        gamma: above 0.
        warmup: fraction of the run, in [0, 1).
    """
    milestones = tuple(milestones)
    if any(not 0 < m < 1 for m in milestones) or list(milestones) != sorted(set(milestones)):
        raise ValueError(
            "milestones are fractions of the run: ascending, each between 0 and 1, "
            f"but are {list(milestones)}"
        )
    if gamma <= 0:
        raise ValueError(f"gamma must be above 0, but is {gamma}")
    return _warmed(lambda progress: gamma ** bisect.bisect_right(milestones, progress), warmup)


def until(end: float, warmup: float = 0.0) -> Factor:
    """1, after a linear warm-up from 0, and 0 from ``end`` on.

    Args:
        end: fraction of the run, in (0, 1].
        warmup: fraction of the run, in [0, 1).
    """
    if not 0 < end <= 1:
        raise ValueError(f"end is a fraction of the run in (0, 1], but is {end}")
    return _warmed(lambda progress: float(progress < end), warmup)


def after(start: float) -> Factor:
    """0, and 1 from ``start`` on.

    Args:
        start: fraction of the run, in (0, 1).
    """
    if not 0 < start < 1:
        raise ValueError(f"start is a fraction of the run in (0, 1), but is {start}")
    return lambda progress: float(progress >= start)


def ramp(until: float) -> Factor:
    """exp(−5·(1 − p/until)²), from e⁻⁵ to 1 at ``until``, and 1 from there on.

    The sigmoid-shaped ramp-up of Laine and Aila (ICLR 2017), which mean teachers, ONE and OKDDip
    have too: over 80 of 300 epochs in the last two.

    Args:
        until: fraction of the run, in (0, 1].
    """
    if not 0 < until <= 1:
        raise ValueError(f"until is a fraction of the run in (0, 1], but is {until}")
    return lambda progress: math.exp(-5 * (1 - min(progress, until) / until) ** 2)


def _warmed(factor: Factor, warmup: float) -> Factor:
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a fraction of the run in [0, 1), but is {warmup}")

    def warmed(progress: float) -> float:
        ramp = progress / warmup if progress < warmup else 1.0
        return ramp * factor(progress)

    return warmed


def is_due(steps: int, count: int, step: int) -> bool:
    """Whether ``step`` is one of ``count`` spread evenly over the run, its last step included.

    The multiples of ``steps / count``, rounded down; none is ever listed, however many they are.
    """
    return step > 0 and -(-step * count // steps) < -(-(step + 1) * count // steps)


class Grouped(Protocol):
    """An optimizer, or several together."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


class Schedule:
    """Sets an optimizer's learning rates to their initial ones times a factor.

    The initial rates lie in the parameter groups (``initial_lr``, as PyTorch's schedulers keep
    them), so the optimizer's own state is all that a resume needs.
    """

    def __init__(self, optimizer: Grouped, factor: Factor) -> None:
        self.optimizer = optimizer
        self.factor = factor
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))

    def apply(self, progress: float) -> None:
        """Set the rates for the step that starts at ``progress``, a fraction of the run."""
        factor = self.factor(progress)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # a captured graph reads this very tensor
                group["lr"].fill_(group["initial_lr"] * factor)
            else:
                group["lr"] = group["initial_lr"] * factor
