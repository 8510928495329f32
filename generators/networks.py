"""Generator networks: from latent noise to inputs in the value range of their specification."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import InputSpec
from models.classifier import full_precision

OUTPUTS = ("sigmoid", "tanh_bn", "bn_tanh", "bn")
CONDITIONINGS = ("concat", "add", "norm")


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

    def latent(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """What losses see as the latent of an input [B, latent_size]: the noise itself."""
        return z


def draw_latent(
    generator: GeneratorNetwork, size: int, num_classes: int | None, noise: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Standard normal z [size, latent_size] and, unless ``num_classes`` is None, uniform classes.

    Both are drawn on the device of ``noise``.
    """
    z = torch.randn(size, generator.latent_size, generator=noise, device=noise.device)
    if num_classes is None:
        return z, None
    return z, torch.randint(num_classes, (size,), generator=noise, device=noise.device)


class ImageGenerator(GeneratorNetwork):
    """The DCGAN-style network that nearly all data-free methods share (DAFL, ICCV 2019).

    Linear to [channels, H/4, W/4], BN, then twice: nearest upsampling, 3×3 convolution, BN,
    LeakyReLU(0.2), and a last 3×3 convolution. 128 channels are the field's standard network,
    256 its large one. A class, where one is given, is embedded and concatenated to ``z``, or
    added to it (MAD, NeurIPS 2022: G(z + e_y)), in which case the sum is the latent, or gives
    each BatchNorm its scale and shift (CPSC-DFKD, Pattern Recognition 2023).

    ``sigmoid`` images lie in the specification's range. ``tanh_bn`` (DAFL's and DFAD's code),
    ``bn_tanh`` (DFME's) and ``bn`` (ZSKT, NeurIPS 2019) end in a BatchNorm and, where named, a
    hyperbolic tangent, whose output is, as there, exactly what the classifier sees after
    normalisation: it is de-normalised here, and as in the papers some values leave the range.
    BatchNorm uses batch statistics for as long as the module is in training mode, which is how
    the papers draw their images too.

    Args:
        spec: of the images, [C, H, W] with H and W divisible by 4.
        num_classes: how many values ``y`` may take.
        latent_size: of ``z``.
        channels: of the first two stages; the third has half of them.
        output: "sigmoid", "tanh_bn", "bn_tanh" or "bn".
        conditional: whether images are generated for a class.
        conditioning: "concat", "add" or "norm", what is done with the class's embedding.

    Attributes:
        depths: the stages that end a resolution: a quarter, a half and the whole of the image's.

    Raises:
        ValueError: for a shape, a number of channels, an output or a conditioning that this
            network does not have.
    """

    depths = (0, 3, 6)

    def __init__(
        self,
        spec: InputSpec,
        num_classes: int,
        latent_size: int = 100,
        channels: int = 128,
        output: str = "sigmoid",
        conditional: bool = False,
        conditioning: str = "concat",
    ) -> None:
        super().__init__()
        _check(spec, channels, output, conditioning)
        self.spec = spec
        self.latent_size = latent_size
        self.conditional = conditional
        self.added = conditional and conditioning == "add"
        concatenated = conditional and conditioning == "concat"
        self.output = output
        image_channels, height, width = spec.shape
        # Stages are [H, W, C] in the Linear's output, so that what follows is channels-last.
        self.stem_shape = (height // 4, width // 4, channels)
        embedded = concatenated or self.added
        self.embedding = nn.Embedding(num_classes, latent_size) if embedded else None
        inputs = latent_size * (2 if concatenated else 1)
        self.linear = nn.Linear(inputs, height // 4 * (width // 4) * channels)
        norm = partial(_norm, num_classes if conditional and not embedded else None)
        self.stages = nn.ModuleList(
            [
                norm(channels),
                *_upsampling(channels, channels, norm),
                *_upsampling(channels, channels // 2, norm),
                nn.Conv2d(channels // 2, image_channels, 3, padding=1),
            ]
        )
        # DAFL, DFAD and DFME fix the scale of the last BatchNorm, ZSKT learns it.
        self.last_norm = norm(image_channels, output == "bn") if output != "sigmoid" else None

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None or not self.conditional, (
            "a conditional generator needs the classes to generate"
        )
        z = self.latent(z, y)
        if self.embedding is not None and not self.added:
            z = torch.cat([z, self.embedding(y)], dim=1)
        return self.finish(self.linear(z).view(-1, *self.stem_shape).permute(0, 3, 1, 2), y)

    def finish(self, x: Tensor, y: Tensor | None = None, first: int = 0) -> Tensor:
        """Images from what stage ``first`` takes: the rest of the network."""
        for layer in list(self.stages)[first:]:
            x = layer(x, y) if isinstance(layer, ClassBatchNorm2d) else layer(x)
        x = full_precision(x)
        if self.last_norm is None:
            low, high = self.spec.range
            return low + (high - low) * x.sigmoid()
        x = x.tanh() if self.output == "tanh_bn" else x
        last = self.last_norm
        x = last(x, y) if isinstance(last, ClassBatchNorm2d) else last(x)
        return self.spec.denormalize(x.tanh() if self.output == "bn_tanh" else x)

    def latent(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The noise, or its sum with the class's embedding where the two are added."""
        if self.embedding is None or not self.added:
            return z
        assert y is not None, "a conditional generator needs the classes to generate"
        return z + self.embedding(y)


def _check(spec: InputSpec, channels: int, output: str, conditioning: str) -> None:
    """Raise a ValueError for what :class:`ImageGenerator` does not have."""
    if len(spec.shape) != 3 or spec.shape[1] % 4 or spec.shape[2] % 4:
        raise ValueError(
            f"ImageGenerator makes images [C, H, W] with H and W divisible by 4, but the "
            f"teacher takes {list(spec.shape)}: use another generator or a teacher of that size"
        )
    if output not in OUTPUTS:
        raise ValueError(f"generator output {output!r} is none of: {', '.join(OUTPUTS)}")
    if conditioning not in CONDITIONINGS:
        known = ", ".join(CONDITIONINGS)
        raise ValueError(f"generator conditioning {conditioning!r} is none of: {known}")
    if channels < 2 or channels % 2:
        raise ValueError(f"the generator's channels must be even, not {channels}")


class GeneratorEnsemble(GeneratorNetwork):
    """Several :class:`ImageGenerator` that share each batch (KegNet, NeurIPS 2019).

    Each batch is cut into n consecutive parts of (almost) the same size, one for each member. So
    one optimizer trains all members, as if alone on a smaller batch, and the student learns from
    all of them at once. A batch smaller than n leaves the last members out.

    Args:
        spec: see :class:`ImageGenerator`, as for all that follows but ``members``.
        num_classes: likewise.
        members: n.
        latent_size: likewise.
        channels: likewise.
        output: likewise.
        conditional: likewise.
        conditioning: likewise.

    Raises:
        ValueError: for fewer than one member, and as :class:`ImageGenerator` does.
    """

    def __init__(
        self,
        spec: InputSpec,
        num_classes: int,
        members: int = 5,
        latent_size: int = 100,
        channels: int = 128,
        output: str = "sigmoid",
        conditional: bool = False,
        conditioning: str = "concat",
    ) -> None:
        super().__init__()
        if members < 1:
            raise ValueError(f"an ensemble needs at least one member, not {members}")
        settings = (latent_size, channels, output, conditional, conditioning)
        self.latent_size, self.conditional = latent_size, conditional
        self.members = nn.ModuleList(
            ImageGenerator(spec, num_classes, *settings) for _ in range(members)
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([member(*part) for member, part in self._shares(z, y)])

    def latent(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([member.latent(*part) for member, part in self._shares(z, y)])

    def _shares(
        self, z: Tensor, y: Tensor | None
    ) -> list[tuple[ImageGenerator, tuple[Tensor, Tensor | None]]]:
        """Each member that has something to do, with its part of the batch."""
        count = min(len(self.members), len(z))
        labels = y.tensor_split(count) if y is not None else (None,) * count
        parts = zip(z.tensor_split(count), labels, strict=True)
        return list(zip(self.members, parts, strict=False))  # type: ignore[arg-type]


class ClassBatchNorm2d(nn.Module):
    """BatchNorm whose scale and shift depend on the class: γ_y·(x − μ)/σ + β_y.

    μ and σ are those of the whole batch, whatever its classes (de Vries et al., NeurIPS 2017).
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Parameter(torch.ones(num_classes, channels))
        self.shift = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = (F.embedding(y, p)[:, :, None, None] for p in (self.scale, self.shift))
        return torch.addcmul(shift.to(x), self.norm(x), scale.to(x))


def _norm(num_classes: int | None, channels: int, affine: bool = True) -> nn.Module:
    """BatchNorm; the class's own, which always has a scale, unless ``num_classes`` is None."""
    if num_classes is None:
        return nn.BatchNorm2d(channels, affine=affine)
    return ClassBatchNorm2d(channels, num_classes)


def _upsampling(
    channels: int, out_channels: int, norm: Callable[[int], nn.Module]
) -> list[nn.Module]:
    conv = UpsampledConv2d(channels, out_channels)
    return [conv, norm(out_channels), nn.LeakyReLU(0.2, inplace=True)]


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
