"""What a network is shown of an input: maps from the data's space to that of its modality."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.spec import InputSpec


class Transform(nn.Module):
    """Inputs [B, *shape] of the data to what a network is shown; differentiable.

    It has no trained parameters, and treats every input by itself, so that evaluation, synthesis
    and averages need to know nothing of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def range(self, takes: InputSpec) -> tuple[float, float]:
        """Smallest and largest value that it can give, for inputs in the range of ``takes``."""
        return takes.range

    def measured(self, takes: InputSpec, inputs: Tensor) -> InputSpec:
        """What it gives for inputs of ``takes``: with the mean and std of these [N, *shape]."""
        with torch.no_grad():
            seen = self(inputs).double()
        axes = [axis for axis in builtins.range(seen.dim()) if axis != 1]
        std = seen.std(axes, correction=0).clamp_min(1e-6)
        mean = seen.mean(axes)
        shape = tuple(seen.shape[1:])
        kind = takes.modality if len(shape) == len(takes.shape) else ""
        rate = takes.rate if shape[-1] == takes.shape[-1] else None
        limits = self.range(takes)
        return InputSpec(shape, limits, tuple(mean.tolist()), tuple(std.tolist()), kind, rate)


class FourierMagnitude(Transform):
    """log(1 + |F(x)|) / log(1 + HW) for each channel of images [B, C, H, W], as [B, C, H, W/2 + 1].

    F is the two-dimensional discrete Fourier transform of values scaled to [0, 1], so that all
    values lie in [0, 1]. The phase is lost: where things are does not show.
    """

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        if len(spec.shape) != 3:
            raise ValueError(f"it takes images [C, H, W], but inputs are {list(spec.shape)}")
        self.low, high = spec.range
        self.width = high - self.low
        self.largest = math.log1p(spec.shape[1] * spec.shape[2])  # of values that are all 1

    def forward(self, x: Tensor) -> Tensor:
        magnitude = torch.fft.rfft2((x.float() - self.low) / self.width).abs()
        return magnitude.log1p() / self.largest  # type: ignore[no-any-return]

    def range(self, takes: InputSpec) -> tuple[float, float]:
        return 0.0, 1.0


class Channels(Transform):
    """Some channels of an input [B, C, ...]: one of two modalities that are stored together."""

    def __init__(self, spec: InputSpec, keep: Sequence[int]) -> None:
        super().__init__()
        channels = spec.shape[0]
        if not keep or not all(0 <= k < channels for k in keep):
            raise ValueError(f"keep={list(keep)} names channels from 0 to {channels - 1}")
        self.keep = list(keep)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.keep]


class Resize(Transform):
    """Images [B, C, H, W] at another size, bilinear with antialiasing."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size={list(size)} should be [height, width]")
        self.size = list(size)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True)
