"""From a small map to an input: the layers of a generator, by modality."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.modality import modality_named
from data.spec import InputSpec

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # by axes of places
MOST_PLACES = 128  # that a signal may begin with
Norm = Callable[[int], nn.Module]  # of so many channels


class Body(Protocol):
    """The layers between a generator's Linear and its output."""

    def stem(self, spec: InputSpec) -> tuple[int, ...]:
        """The places of the small map that they begin with.

        Raises:
            ValueError: for inputs of a size that they cannot make.
        """

    def stages(self, spec: InputSpec, channels: int, norm: Norm) -> list[nn.Module]:
        """They themselves: a BatchNorm, then steps of three layers, of which the last one ends a
        resolution, and a last layer to the input's channels."""


class ImageBody:
    """Twice nearest upsampling, a 3×3 convolution, BatchNorm and LeakyReLU(0.2): DCGAN's.

    Channels are c, c, c and c/2.
    """

    def stem(self, spec: InputSpec) -> tuple[int, ...]:
        _, height, width = spec.shape
        if height % 4 or width % 4:
            raise ValueError(
                f"generators make images [C, H, W] with H and W divisible by 4, but the teacher "
                f"takes {list(spec.shape)}: use a generator of your own, or a teacher of such a "
                "size"
            )
        return height // 4, width // 4

    def stages(self, spec: InputSpec, channels: int, norm: Norm) -> list[nn.Module]:
        return [
            norm(channels),
            *_upsampling(UpsampledConv2d(channels, channels), channels, norm),
            *_upsampling(UpsampledConv2d(channels, channels // 2), channels // 2, norm),
            nn.Conv2d(channels // 2, spec.shape[0], 3, padding=1),
        ]


class SignalBody:
    """Steps of nearest upsampling by 4 and a convolution over 25 samples, as WaveGAN has them.

    WaveGAN (Donahue et al., ICLR 2019) upsamples by 4 with kernels of 25, and so does its last
    layer, so that nothing but the signal has its full length. Here steps of 4, and at the end one
    of 2, lead from at least 4 samples to the whole signal. BatchNorm is what data-free generators
    have, and WaveGAN has not. Channels are c, and c/2 before the last layer.
    """

    kernel = 25

    def stem(self, spec: InputSpec) -> tuple[int, ...]:
        return (spec.shape[1] // math.prod(self.factors(spec)),)

    def factors(self, spec: InputSpec) -> list[int]:
        """By how much each step upsamples."""
        length = spec.shape[1]
        found: list[int] = []
        while length % 4 == 0 and length >= 16:
            length //= 4
            found.append(4)
        if length % 2 == 0 and length >= 8:
            found.append(2)
        if not found or spec.shape[1] // math.prod(found) > MOST_PLACES:
            raise ValueError(
                f"generators make signals [C, L] with L divisible by a power of 4, but the teacher "
                f"takes {list(spec.shape)}: pad the signals, as data.size=4096 does, for a teacher "
                "of such a length, or use a generator of your own"
            )
        return found

    def stages(self, spec: InputSpec, channels: int, norm: Norm) -> list[nn.Module]:
        layers, width, factors = [norm(channels)], channels, self.factors(spec)
        for i, factor in enumerate(factors[:-1], 2):
            out = channels if i < len(factors) else channels // 2
            layers += _upsampling(UpsampledConv1d(width, out, self.kernel, factor), out, norm)
            width = out
        last = UpsampledConv1d(width, spec.shape[0], self.kernel, factors[-1], bias=True)
        return [*layers, last]


class VectorBody:
    """Linear layers, BatchNorm and LeakyReLU(0.2): twice, of c and c/2 channels."""

    def stem(self, spec: InputSpec) -> tuple[int, ...]:
        return ()

    def stages(self, spec: InputSpec, channels: int, norm: Norm) -> list[nn.Module]:
        half = channels // 2
        return [
            norm(channels),
            *_upsampling(nn.Linear(channels, channels, bias=False), channels, norm),
            *_upsampling(nn.Linear(channels, half, bias=False), half, norm),
            nn.Linear(half, spec.shape[0]),
        ]


BODIES: dict[str, Body] = {"image": ImageBody(), "signal": SignalBody(), "vector": VectorBody()}


def body_for(spec: InputSpec) -> Body:
    """The body of a modality.

    Raises:
        ValueError: if it has none.
    """
    if spec.modality not in BODIES:
        known = ", ".join(modality_named(name).plural for name in BODIES)
        raise ValueError(
            f"the standard generators make {known}, but the teacher takes "
            f"{modality_named(spec.modality).plural}: use a generator of your own"
        )
    return BODIES[spec.modality]


class ClassBatchNorm(nn.Module):
    """BatchNorm whose scale and shift depend on the class: γ_y·(x − μ)/σ + β_y.

    μ and σ are those of the whole batch, whatever its classes (de Vries et al., NeurIPS 2017).
    """

    def __init__(self, places: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = BATCHNORMS[places](channels, affine=False)
        self.scale = nn.Parameter(torch.ones(num_classes, channels))
        self.shift = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        ones = (1,) * (x.dim() - 2)
        both = (F.embedding(y, p) for p in (self.scale, self.shift))
        scale, shift = (p.view(*p.shape, *ones) for p in both)
        return torch.addcmul(shift.to(x), self.norm(x), scale.to(x))


def batchnorm(
    places: int, num_classes: int | None, channels: int, affine: bool = True
) -> nn.Module:
    """BatchNorm over maps with so many axes of places; the class's own, which always has a scale,
    unless ``num_classes`` is None."""
    if num_classes is None:
        return BATCHNORMS[places](channels, affine=affine)
    return ClassBatchNorm(places, channels, num_classes)


def _upsampling(layer: nn.Module, out_channels: int, norm: Norm) -> list[nn.Module]:
    return [layer, norm(out_channels), nn.LeakyReLU(0.2, inplace=True)]


class UpsampledConv2d(nn.Module):
    """Nearest upsampling by 2 and a 3×3 convolution in one, with 4/9 of the multiplications.

    Of the nine taps, those that fall on copies of one pixel are added up beforehand, which leaves
    a transposed convolution with a 4×4 kernel and stride 2. [B, I, H, W] -> [B, O, 2H, 2W].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # No bias: the BatchNorm that follows would take it out again.
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As PyTorch draws a convolution's weights."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        kernel = _merge_taps(_merge_taps(self.weight, 2), 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)


def _merge_taps(weight: Tensor, dim: int) -> Tensor:
    """Taps (a, b, c) over an upsampled line become (c, b + c, a + b, a) over the line itself."""
    a, b, c = weight.unbind(dim)
    return torch.stack([c, b + c, a + b, a], dim)


class UpsampledConv1d(nn.Module):
    """Nearest upsampling by f and a convolution over k samples, k odd, in one.

    Of the k taps, those that fall on copies of one sample are added up beforehand, which leaves a
    convolution with some k/f taps for each of the f phases: [B, I, L] -> [B, O, f·L].
    """

    merge: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, factor: int, bias: bool = False
    ) -> None:
        super().__init__()
        # A bias only at the end: the BatchNorm that follows elsewhere would take it out again.
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.factor = factor
        reach = kernel // 2
        first, last = -reach // factor, (factor - 1 + reach) // factor
        merge = torch.zeros(factor, kernel, last - first + 1)
        for phase in range(factor):
            for tap in range(kernel):
                merge[phase, tap, (phase + tap - reach) // factor - first] = 1
        self.register_buffer("merge", merge, persistent=False)
        self.padding = (-first, last)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As PyTorch draws those of a convolution."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            reach = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            nn.init.uniform_(self.bias, -reach, reach)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.einsum("oik,fkt->ofit", self.weight, self.merge).flatten(0, 1)
        bias = None if self.bias is None else self.bias.repeat_interleave(self.factor)
        phases = F.conv1d(F.pad(x, self.padding), kernel, bias)
        return phases.unflatten(1, (-1, self.factor)).transpose(2, 3).flatten(2)
