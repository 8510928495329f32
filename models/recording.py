"""What hooks record while a network runs: outputs of taps, statistics of BatchNorm layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass
class Statistics:
    """Mean and biased variance [C] of a BatchNorm layer's input, and the layer's running ones."""

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


@dataclass
class Record:
    """The records of one pass: a pair for each time that a hook fired, in order."""

    features: list[tuple[str, Tensor]] = field(default_factory=list)
    statistics: list[tuple[str, Statistics]] = field(default_factory=list)

    def clear(self) -> None:
        self.features.clear()
        self.statistics.clear()


class Hook:
    """Base of our hooks: objects, so that a deep copy of a network has its own record."""

    def __init__(self, record: Record, name: str) -> None:
        self.record, self.name = record, name


class Tap(Hook):
    """A forward hook that records a module's output.

    Args:
        turned: whether that is [B, H, W, C], to be recorded as [B, C, H, W].
        line: whether it is a map over a line, [B, C, L], to be recorded as [B, C, 1, L], so that
            what works on maps works on it.
    """

    def __init__(self, record: Record, name: str, turned: bool = False, line: bool = False) -> None:
        super().__init__(record, name)
        self.turned, self.line = turned, line

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"the tap {self.name!r} gives a {type(output).__name__}, not one tensor: "
                "name a module inside it"
            )
        x = full_precision(output.movedim(-1, 1) if self.turned else output)
        if self.line and x.dim() == 3:
            x = x.unsqueeze(2)
        self.record.features.append((self.name, x))


class Moments(Hook):
    """A forward pre-hook that records the mean and variance of a BatchNorm layer's input."""

    def __call__(self, layer: BatchNorm, args: tuple[Tensor]) -> None:
        x = full_precision(args[0])
        dims = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(x, dims, correction=0)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        found = Statistics(mean, variance, layer.running_mean, layer.running_var)
        self.record.statistics.append((self.name, found))


def by_layer(noted: list[tuple[str, Statistics]]) -> dict[str, Statistics]:
    """One entry per layer, in the order in which they first ran.

    For a layer that ran several times these are the averages of its means and of its variances: its
    running statistics converge to those, as every use moves them in turn. No single use need come
    near them, even on real data.
    """
    grouped: dict[str, list[Statistics]] = {}
    for name, statistics in noted:
        grouped.setdefault(name, []).append(statistics)
    return {name: uses[0] if len(uses) == 1 else _average(uses) for name, uses in grouped.items()}


def _average(uses: list[Statistics]) -> Statistics:
    mean = torch.stack([use.mean for use in uses]).mean(0)
    variance = torch.stack([use.variance for use in uses]).mean(0)
    return Statistics(mean, variance, uses[0].running_mean, uses[0].running_variance)


def full_precision(x: Tensor) -> Tensor:
    """float64 stays; anything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()
