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
from generators.noise_bands import NoiseBands

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # by axes of places
Norm = Callable[[int], nn.Module]  # of so many channels


class Body(Protocol):
    """The layers between a generator's Linear and its output.

    Attributes:
        places: axes of their maps over which a convolution moves.
    """

    places: int

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

    places = 2

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
        last = nn.Conv2d(channels // 2, spec.shape[0], 3, padding=1)
        return [*_doubled(channels, norm), last]


class SignalBody:
    """An image's layers for a map of bands and frames, which shapes noise.

    The map has one plane per channel of the signal, and :class:`NoiseBands` draws the signal.
    Upsampled samples, as in WaveGAN (Donahue et al., ICLR 2019), are slow to leave one spectrum and
    one loudness: on spoken digits a student learned next to nothing of them.
    """

    places = 2

    def stem(self, spec: InputSpec) -> tuple[int, ...]:
        return NoiseBands.bands // 4, NoiseBands.frames(spec.shape[1]) // 4

    def stages(self, spec: InputSpec, channels: int, norm: Norm) -> list[nn.Module]:
        return [*_doubled(channels, norm), NoiseBands(channels // 2, *spec.shape)]


class VectorBody:
    """Linear layers, BatchNorm and LeakyReLU(0.2): twice, of c and c/2 channels. Then a draw from
    the normal distribution that they describe.

    Without the draw, vectors lie on a surface that is a small part of what a teacher can tell
    apart, and a student may learn more from noise.
    """

    places = 0

    def stem(self, spec: InputSpec) -> tuple[int, ...]:
        return ()

    def stages(self, spec: InputSpec, channels: int, norm: Norm) -> list[nn.Module]:
        half = channels // 2
        return [
            norm(channels),
            *_upsampling(nn.Linear(channels, channels, bias=False), channels, norm),
            *_upsampling(nn.Linear(channels, half, bias=False), half, norm),
            Normal(half, spec.shape[0]),
        ]


class Normal(nn.Module):
    """[B, I] to a draw from a normal distribution for each value, m + exp(s)·ε, [B, O].

    m and s are linear in the input, and the gradient passes through both (Kingma and Welling, ICLR
    2014). ε is drawn anew in each call.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.linear(x).float().chunk(2, 1)
        return torch.addcmul(mean, spread.exp(), torch.randn_like(spread))


class TextBody:
    """Twice a convolution over 3 places, BatchNorm and LeakyReLU(0.2), and a linear layer to the
    words with BatchNorm, from whose softmax words are drawn.

    All places are there from the beginning: words do not change gradually from one to the next, as
    upsampling would have them. Channels are c, c and c/2.
    """

    places = 1

    def stem(self, spec: InputSpec) -> tuple[int, ...]:
        return (spec.shape[1],)

    def stages(self, spec: InputSpec, channels: int, norm: Norm) -> list[nn.Module]:
        layers = [norm(channels)]
        for out in (channels, channels // 2):
            layers += _upsampling(nn.Conv1d(channels, out, 3, padding=1, bias=False), out, norm)
        return [*layers, Words(channels // 2, spec.shape[0])]


class Words(nn.Module):
    """[B, C, L] to a value for each word at each place, [B, V, L]: the largest is a draw.

    Each value is a logit and noise of Gumbel's distribution, drawn anew in each call, so that the
    largest one is a word drawn from the logits' softmax (Jang et al., ICLR 2017). Without a draw,
    the same features would always give the same word. BatchNorm gives every word its turn. At first
    padding, the first word, takes about half of the places, so that texts differ in length.
    """

    def __init__(self, channels: int, words: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, words, bias=False)
        self.norm = nn.BatchNorm1d(words, affine=False)
        self.scale = nn.Parameter(torch.empty(words))
        self.shift = nn.Parameter(torch.empty(words))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The mean of exp(h) is exp(1/2) for standard normal h."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)
        nn.init.constant_(self.shift[:1], math.log(len(self.shift)) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        values = self.linear(x.transpose(1, 2))
        normal = self.norm(values.flatten(0, 1)).view_as(values).float()
        logits = torch.addcmul(self.shift, normal, self.scale)
        noise = torch.empty_like(logits).exponential_().log()
        return (logits - noise).transpose(1, 2)


BODIES: dict[str, Body] = {
    "image": ImageBody(),
    "signal": SignalBody(),
    "vector": VectorBody(),
    "text": TextBody(),
}


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
        self.scale = nn.Parameter(torch.empty(num_classes, channels))
        self.shift = nn.Parameter(torch.empty(num_classes, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)

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


def _doubled(channels: int, norm: Norm) -> list[nn.Module]:
    """A BatchNorm, then twice nearest upsampling by 2 and a convolution."""
    half = channels // 2
    return [
        norm(channels),
        *_upsampling(UpsampledConv2d(channels, channels), channels, norm),
        *_upsampling(UpsampledConv2d(channels, half), half, norm),
    ]


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
