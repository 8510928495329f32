"""Generator networks: from latent noise to inputs in the value range of their specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import InputSpec
from models.classifier import full_precision

OUTPUTS = ("sigmoid", "tanh_bn", "bn")


class GeneratorNetwork(nn.Module):
    """``forward(z [B, latent_size], y [B] int64 or None) -> x [B, *shape]``, float32.

    Attributes:
        latent_size: the number of latent values per input.
        conditional: whether ``y``, the class to generate, is needed.
    """

    latent_size: int
    conditional: bool = False

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class ImageGenerator(GeneratorNetwork):
    """The DCGAN-style network that nearly all data-free methods share (DAFL, ICCV 2019).

    Linear to [channels, H/4, W/4], BN, then twice: nearest upsampling, 3×3 convolution, BN,
    LeakyReLU(0.2), and a last 3×3 convolution. 128 channels are the field's standard network,
    256 its large one. A class, where one is given, is embedded and concatenated to ``z``.

    ``sigmoid`` images lie in the specification's range. ``tanh_bn`` (DAFL's and DFAD's code) and
    ``bn`` (ZSKT, NeurIPS 2019) end in a BatchNorm whose output is, as there, exactly what the
    classifier sees after normalisation: it is de-normalised here, and as in the papers some
    values leave the range. BatchNorm uses batch statistics for as long as the module is in
    training mode, which is how the papers draw their images too.

    Args:
        spec: of the images, [C, H, W] with H and W divisible by 4.
        num_classes: how many values ``y`` may take.
        latent_size: of ``z``.
        channels: of the first two stages; the third has half of them.
        output: "sigmoid", "tanh_bn" or "bn".
        conditional: whether images are generated for a class.

    Raises:
        ValueError: for a shape, a number of channels or an output that this network cannot make.
    """

    def __init__(
        self,
        spec: InputSpec,
        num_classes: int,
        latent_size: int = 100,
        channels: int = 128,
        output: str = "sigmoid",
        conditional: bool = False,
    ) -> None:
        super().__init__()
        if len(spec.shape) != 3 or spec.shape[1] % 4 or spec.shape[2] % 4:
            raise ValueError(
                f"ImageGenerator makes images [C, H, W] with H and W divisible by 4, but the "
                f"teacher takes {list(spec.shape)}: use another generator or a teacher of that size"
            )
        if output not in OUTPUTS:
            raise ValueError(f"generator output {output!r} is none of: {', '.join(OUTPUTS)}")
        if channels < 2 or channels % 2:
            raise ValueError(f"the generator's channels must be even, not {channels}")
        self.spec = spec
        self.latent_size = latent_size
        self.conditional = conditional
        self.output = output
        image_channels, height, width = spec.shape
        # Stages are [H, W, C] in the Linear's output, so that what follows is channels-last.
        self.stem_shape = (height // 4, width // 4, channels)
        self.embedding = nn.Embedding(num_classes, latent_size) if conditional else None
        inputs = latent_size * (2 if conditional else 1)
        self.linear = nn.Linear(inputs, height // 4 * (width // 4) * channels)
        self.stages = nn.Sequential(
            nn.BatchNorm2d(channels),
            *_upsampling(channels, channels),
            *_upsampling(channels, channels // 2),
            nn.Conv2d(channels // 2, image_channels, 3, padding=1),
        )
        # DAFL and DFAD fix the scale of the last BatchNorm, ZSKT learns it.
        self.last_norm = (
            nn.BatchNorm2d(image_channels, affine=output == "bn") if output != "sigmoid" else None
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            assert y is not None, "a conditional generator needs the classes to generate"
            z = torch.cat([z, self.embedding(y)], dim=1)
        x = self.linear(z).view(-1, *self.stem_shape).permute(0, 3, 1, 2)
        x = full_precision(self.stages(x))
        if self.last_norm is None:
            low, high = self.spec.range
            return low + (high - low) * x.sigmoid()
        return self.spec.denormalize(self.last_norm(x.tanh() if self.output == "tanh_bn" else x))


def _upsampling(channels: int, out_channels: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d(out_channels)
    return [UpsampledConv2d(channels, out_channels), norm, nn.LeakyReLU(0.2, inplace=True)]


class UpsampledConv2d(nn.Module):
    """Nearest upsampling by 2 and a 3×3 convolution in one, with 4/9 of the multiplications.

    Of the nine taps, those that fall on copies of one pixel are added up beforehand, which leaves
    a transposed convolution with a 4×4 kernel and stride 2. [B, I, H, W] -> [B, O, 2H, 2W].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # No bias: the BatchNorm that follows would take it out again.
        self.weight = nn.Parameter(nn.Conv2d(in_channels, out_channels, 3, bias=False).weight)

    def forward(self, x: Tensor) -> Tensor:
        kernel = _merge_taps(_merge_taps(self.weight, 2), 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)


def _merge_taps(weight: Tensor, dim: int) -> Tensor:
    """Taps (a, b, c) over an upsampled line become (c, b + c, a + b, a) over the line itself."""
    a, b, c = weight.unbind(dim)
    return torch.stack([c, b + c, a + b, a], dim)
