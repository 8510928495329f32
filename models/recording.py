"""What hooks record while a network runs: outputs of taps, statistics of BatchNorm layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        turned: whether its channels come last, [B, ..., C], to be recorded as [B, C, ...].
        line: whether it is a map over a line, then [B, C, L], to be recorded as [B, C, 1, L], so
            that what works on maps works on it.
    """

    def __init__(self, record: Record, name: str, turned: bool = False, line: bool = False) -> None:
        super().__init__(record, name)
        self.turned, self.line = turned, line

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        """What goes on in the output's place: of what is recorded in another shape, that very
        tensor, so that a gradient by the feature is one."""
        if not isinstance(output, Tensor):
            raise ValueError(
                f"the tap {self.name!r} gives a {type(output).__name__}, not one tensor: "
                "name a module inside it"
            )
        line = self.line and output.dim() == 3
        x = output.movedim(-1, 1) if self.turned else output
        x = x.unsqueeze(2) if line else x
        self.record.features.append((self.name, full_precision(x)))
        if not (self.turned or line):
            return None
        x = x.squeeze(2) if line else x
        return x.movedim(1, -1) if self.turned else x


class _MeanAndVariance(torch.autograd.Function):
    """See :func:`mean_and_variance`; keeps only x, which the layer's own backward keeps anyway."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        # torch.var_mean is several times slower on a CPU, in any layout. Moments about the running
        # mean would take as many passes as this does, and cancel where it is far off.
        exact = full_precision(x)
        mean = exact.mean(_all_but_channels(x))
        by_channel = mean.view(-1, *[1] * (x.dim() - 2))
        # Only a copy may be changed. Its dtype tells; a compiler may take `exact is x` for false.
        centred = exact - by_channel if exact.dtype == x.dtype else exact.sub_(by_channel)
        return mean, centred.square_().mean(_all_but_channels(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> Tensor:  # type: ignore[override]
        x, mean = ctx.saved_tensors
        return _slope(ctx, x, mean, by_mean, by_variance)


@once_differentiable  # type: ignore[untyped-decorator]
def _slope(_: Any, x: Tensor, mean: Tensor, by_mean: Tensor, by_variance: Tensor) -> Tensor:
    """(x − mean) · 2/n · by_variance + by_mean/n, at once and in x's dtype and layout.

    It is given x, or a second derivative by x would be left out rather than refused.
    """
    n = x.numel() // x.shape[1]
    weight, bias, one = by_variance * (2 / n), by_mean / n, torch.ones_like(mean)
    return F.batch_norm(x, mean, one, weight, bias, eps=1e-30)  # 1 + eps is 1; 0 is not allowed


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [B, C, ...] in any memory format, by channel.

    float64 for float64, otherwise float32. Differentiable once; the gradient has x's dtype and
    memory format.
    """
    found: tuple[Tensor, Tensor] = _MeanAndVariance.apply(x)
    return found


def _all_but_channels(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


class Moments(Hook):
    """A forward pre-hook that records the mean and variance of a BatchNorm layer's input."""

    def __call__(self, layer: BatchNorm, args: tuple[Tensor]) -> None:
        mean, variance = mean_and_variance(args[0])
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
