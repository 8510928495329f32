"""What a network is shown of an input: maps from the data's space to that of its modality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.check import parameters_of
from data.modality import require
from data.pair import Pair
from data.spec import InputSpec

INSTEAD = "choose another transform, or data of images"
LEAST_STD = 1e-6  # a channel that varies by less is constant, and has no scale
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
LARGEST_SLOPE = math.sqrt(20)  # of Sobel's filters on values in 0..1: 4 along one axis, 2 the other


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
            seen = self.to(inputs.device)(inputs)
        shape = tuple(seen.shape[1:])
        kind = takes.modality if len(shape) == len(takes.shape) else ""
        rate = takes.rate if shape[-1] == takes.shape[-1] else None
        return InputSpec(shape, self.range(takes), *moments(seen), kind, rate)


def moments(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of inputs [N, *shape]; 1 where it is constant."""
    x = x.double()
    axes = [axis for axis in range(x.dim()) if axis != 1]
    std = x.std(axes, correction=0)
    return tuple(x.mean(axes).tolist()), tuple(torch.where(std < LEAST_STD, 1.0, std).tolist())


class OfImages(Transform):
    """Base of those that take images, as values scaled to [0, 1], and give values in [0, 1]."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        require(spec, ("image",), f"data.transforms.{type(self).__name__}", INSTEAD)
        self.low, high = spec.range
        self.width = high - self.low

    def scaled(self, x: Tensor) -> Tensor:
        """Images in [0, 1], in float32 or float64."""
        x = x if x.dtype == torch.float64 else x.float()
        return (x - self.low) / self.width

    def range(self, takes: InputSpec) -> tuple[float, float]:
        return 0.0, 1.0


class FourierMagnitude(OfImages):
    """log(1 + |F(x)|) / log(1 + HW) for each channel of images [B, C, H, W], as [B, C, H, W/2 + 1].

    F is the two-dimensional discrete Fourier transform. The phase is lost: where things are does
    not show.
    """

    def __init__(self, spec: InputSpec) -> None:
        super().__init__(spec)
        self.largest = math.log1p(spec.shape[1] * spec.shape[2])  # of values that are all 1

    def forward(self, x: Tensor) -> Tensor:
        magnitude = torch.fft.rfft2(self.scaled(x)).abs()
        return magnitude.log1p() / self.largest  # type: ignore[no-any-return]


class Edges(OfImages):
    """√(g² + s²) − s, g² = gₓ² + g_y² over its largest value, of each channel of [B, C, H, W].

    gₓ and g_y are Sobel's 3×3 filters; images go on beyond their border with its values. Flat areas
    are exactly 0, and s = ``smooth`` keeps the gradient finite there, where that of √g² is not.

    Args:
        smooth: s > 0; slopes well above it show as they are.
    """

    def __init__(self, spec: InputSpec, smooth: float = 0.01) -> None:
        super().__init__(spec)
        if smooth <= 0:
            raise ValueError(f"smooth must be above 0, but is {smooth}")
        self.smooth = float(smooth)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(x) / LARGEST_SLOPE
        # what F.pad does by mode="replicate", whose gradient is not deterministic on CUDA
        x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=-2)
        x = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
        down = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
        along = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
        horizontal = down[..., 2:] - down[..., :-2]
        vertical = along[..., 2:, :] - along[..., :-2, :]
        square = horizontal.square() + vertical.square()
        return (square + self.smooth**2).sqrt() - self.smooth


class _OfColour(OfImages):
    def __init__(self, spec: InputSpec) -> None:
        super().__init__(spec)
        if spec.shape[0] != 3:
            raise ValueError(
                f"it takes images in colour [3, H, W], but inputs are {list(spec.shape)}: {INSTEAD}"
            )

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], and their luminance Y [B, 1, H, W]."""
        x = self.scaled(x)
        luminance = sum(w * x[:, i : i + 1] for i, w in enumerate(LUMA))
        assert isinstance(luminance, Tensor)
        return x, luminance


class Luminance(_OfColour):
    """Y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) of images [B, 3, H, W], as [B, 1, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.split(x)[1]


class Chroma(_OfColour):
    """C_b = ½ + (B − Y)/1.772 and C_r = ½ + (R − Y)/1.402 (BT.601), as [B, 2, H, W].

    Both are ½ wherever an image is grey: of luminance nothing is left. CRD (Tian et al., ICLR 2020)
    takes L and ab of Lab in the place of Y and CbCr.
    """

    def forward(self, x: Tensor) -> Tensor:
        x, luminance = self.split(x)
        blue, red = (x[:, i : i + 1] - luminance for i in (2, 0))
        return torch.cat([blue / (2 - 2 * LUMA[2]), red / (2 - 2 * LUMA[0])], dim=1) + 0.5


class Channels(Transform):
    """Some channels of an input [B, C, ...]: one of two modalities that are stored together."""

    def __init__(self, spec: InputSpec, keep: Sequence[int]) -> None:
        super().__init__()
        channels = spec.shape[0]
        if not keep or not all(0 <= k < channels for k in keep):
            raise ValueError(f"keep={list(keep)} names channels from 0 to {channels - 1}")
        self.keep = list(keep)

    def forward(self, x: Tensor) -> Tensor:
        # x[:, keep] would send the list to the device, which waits
        return torch.stack([x[:, k] for k in self.keep], dim=1)


class Resize(Transform):
    """Images [B, C, H, W] at another size, bilinear with antialiasing.

    PyTorch's gradient of it is not deterministic on CUDA.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size={list(size)} should be [height, width]")
        self.size = list(size)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, mode="bilinear", antialias=True)


class Part(Transform):
    """One of the two inputs of a pair, as its modality has it.

    Args:
        spec: of the pairs.
        part: a or b.
        then: what to make of it: another transform, written with ``_partial_: true``.

    Raises:
        ValueError: for inputs that are no pairs.
    """

    def __init__(
        self,
        spec: InputSpec,
        part: Literal["a", "b"],
        then: Callable[..., Transform] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(spec.kind, Pair):
            raise ValueError(
                f"it takes one of the two inputs of a pair, but the inputs are {spec.kind.plural} "
                f"{list(spec.shape)}: choose data of pairs, such as data=npz_pairs"
            )
        self.kind, self.part, self.limits = spec.kind, part, spec.range
        self.spec = self.kind.parts[part]
        self.then: Transform | None = None
        if then is not None:
            named = {"spec": self.spec} if "spec" in parameters_of(then)[0] else {}
            self.then = then(**named)

    def forward(self, x: Tensor) -> Tensor:
        x = self.kind.part(x, self.part, self.limits)
        return x if self.then is None else self.then(x)

    def range(self, takes: InputSpec) -> tuple[float, float]:
        return self.spec.range if self.then is None else self.then.range(self.spec)

    def measured(self, takes: InputSpec, inputs: Tensor) -> InputSpec:
        x = self.kind.part(inputs, self.part, self.limits)
        if self.then is not None:
            return self.then.measured(self.spec, x)
        mean, std = moments(x)
        return replace(self.spec, mean=mean, std=std)
