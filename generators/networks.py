"""Generator networks: from latent noise to inputs in the value range of their specification."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from data.spec import InputSpec
from generators.bodies import ClassBatchNorm, batchnorm, body_for
from models.classifier import full_precision

OUTPUTS = ("sigmoid", "scaled", "tanh_bn", "bn_tanh", "bn")
SCALES = (0.01, 4.0)  # of a generator's ``scaled`` output: no channel is dead or saturated
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


class StandardGenerator(GeneratorNetwork):
    """The network that nearly all data-free methods share (DAFL, ICCV 2019), for any modality.

    A Linear gives a small map, which is doubled step by step (:mod:`generators.bodies`). For images
    this is the DCGAN-style network of the field: 128 channels are the standard one, 256 the large
    one. A class, where one is given, is embedded and concatenated to ``z``, or added to it (MAD,
    NeurIPS 2022: G(z + e_y)), in which case the sum is the latent, or gives each BatchNorm its
    scale and shift (CPSC-DFKD, Pattern Recognition 2023).

    ``sigmoid`` inputs lie in the specification's range, and so do ``scaled`` ones, a sigmoid too,
    whose argument a·h + b is such that h = 0 gives the mean that the classifier expects of each
    channel, and small h spread by its standard deviation: without a step of training, a waveform
    is about as loud as real ones. Words have no such mean. ``tanh_bn`` (DAFL's and DFAD's code),
    ``bn_tanh`` (DFME's) and ``bn`` (ZSKT, NeurIPS 2019) end in a BatchNorm and, where named, a
    hyperbolic tangent, whose output is, as there, exactly what the classifier sees after
    normalisation: it is de-normalised here, and as in the papers some values leave the range.
    Columns of a vector that are one category end in a softmax, whatever the output.
    BatchNorm uses batch statistics for as long as the module is in training mode, which is how
    the papers draw their images too.

    Args:
        spec: of the inputs, of a modality and a size that has a body.
        num_classes: how many values ``y`` may take.
        latent_size: of ``z``.
        channels: of the first stages; the last hidden one has half of them.
        output: "sigmoid", "scaled", "tanh_bn", "bn_tanh" or "bn".
        conditional: whether inputs are generated for a class.
        conditioning: "concat", "add" or "norm", what is done with the class's embedding.

    Attributes:
        depths: the stages that end a resolution, from the smallest map to the largest.

    Raises:
        ValueError: for a shape, a number of channels, an output or a conditioning that this
            network does not have.
    """

    scale: Tensor
    shift: Tensor

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
        _check(channels, output, conditioning)
        body = body_for(spec)
        self.spec = spec
        self.latent_size = latent_size
        self.conditional = conditional
        self.added = conditional and conditioning == "add"
        concatenated = conditional and conditioning == "concat"
        self.output = output
        # Channels are last in the Linear's output, so that what follows is channels-last.
        self.stem_shape = (*body.stem(spec), channels)
        embedded = concatenated or self.added
        self.embedding = nn.Embedding(num_classes, latent_size) if embedded else None
        inputs = latent_size * (2 if concatenated else 1)
        self.linear = nn.Linear(inputs, math.prod(self.stem_shape))
        classes = num_classes if conditional and not embedded else None
        norm = partial(batchnorm, body.places, classes)
        self.stages = nn.ModuleList(body.stages(spec, channels, norm))
        self.depths = tuple(range(0, len(self.stages) - 1, 3))
        # DAFL, DFAD and DFME fix the scale of the last BatchNorm, ZSKT learns it.
        bounded = output in ("sigmoid", "scaled")
        places = len(spec.kind.places)
        last = partial(batchnorm, places, classes, spec.shape[0], output == "bn")
        self.last_norm = None if bounded else last()
        self.scaled = output == "scaled" and not spec.kind.discrete
        if self.scaled:
            for name, value in zip(("scale", "shift"), expected(spec), strict=True):
                self.register_buffer(name, value, persistent=False)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None or not self.conditional, (
            "a conditional generator needs the classes to generate"
        )
        z = self.latent(z, y)
        if self.embedding is not None and not self.added:
            z = torch.cat([z, self.embedding(y)], dim=1)
        return self.finish(self.linear(z).view(-1, *self.stem_shape).movedim(-1, 1), y)

    def finish(self, x: Tensor, y: Tensor | None = None, first: int = 0) -> Tensor:
        """Inputs from what stage ``first`` takes: the rest of the network."""
        for layer in list(self.stages)[first:]:
            x = layer(x, y) if isinstance(layer, ClassBatchNorm) else layer(x)
        x = full_precision(x)
        if self.last_norm is None:
            x = torch.addcmul(self.shift, x, self.scale) if self.scaled else x
            return self.spec.kind.free(x, self.spec)
        x = x.tanh() if self.output == "tanh_bn" else x
        last = self.last_norm
        x = last(x, y) if isinstance(last, ClassBatchNorm) else last(x)
        x = x.tanh() if self.output == "bn_tanh" else x
        return self.spec.kind.standard(x, self.spec)

    def latent(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The noise, or its sum with the class's embedding where the two are added."""
        if self.embedding is None or not self.added:
            return z
        assert y is not None, "a conditional generator needs the classes to generate"
        return z + self.embedding(y)


def expected(spec: InputSpec) -> tuple[Tensor, Tensor]:
    """a and b, for each channel, of the output ``scaled``: [1, C, 1, ...].

    With the mean m and the standard deviation s in units of the range, b is the logit of m, where
    the sigmoid's slope is m·(1 − m), and a = s / (m·(1 − m)). In columns that are one category b is
    log m, whose softmax is m.
    """
    low, high = spec.range
    ones = (1,) * (len(spec.shape) - 1)
    mean = ((torch.tensor(spec.mean) - low) / (high - low)).clamp(0.02, 0.98)
    slope = mean * (1 - mean)
    scale = (torch.tensor(spec.std) / (high - low) / slope).clamp(*SCALES)
    shift = mean.logit()
    for start, end in spec.groups:
        shift[start:end] = mean[start:end].log()
    return scale.view(1, -1, *ones), shift.view(1, -1, *ones)


def _check(channels: int, output: str, conditioning: str) -> None:
    """Raise a ValueError for what :class:`StandardGenerator` does not have."""
    if output not in OUTPUTS:
        raise ValueError(f"generator output {output!r} is none of: {', '.join(OUTPUTS)}")
    if conditioning not in CONDITIONINGS:
        known = ", ".join(CONDITIONINGS)
        raise ValueError(f"generator conditioning {conditioning!r} is none of: {known}")
    if channels < 2 or channels % 2:
        raise ValueError(f"the generator's channels must be even, not {channels}")


class GeneratorEnsemble(GeneratorNetwork):
    """Several :class:`StandardGenerator` that share each batch (KegNet, NeurIPS 2019).

    Each batch is cut into n consecutive parts of (almost) the same size, one for each member. So
    one optimizer trains all members, as if alone on a smaller batch, and the student learns from
    all of them at once. A batch smaller than n leaves the last members out.

    Args:
        spec: see :class:`StandardGenerator`, as for all that follows but ``members``.
        num_classes: likewise.
        members: n.
        latent_size: likewise.
        channels: likewise.
        output: likewise.
        conditional: likewise.
        conditioning: likewise.

    Raises:
        ValueError: for fewer than one member, and as :class:`StandardGenerator` does.
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
            StandardGenerator(spec, num_classes, *settings) for _ in range(members)
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([member(*part) for member, part in self._shares(z, y)])

    def latent(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([member.latent(*part) for member, part in self._shares(z, y)])

    def _shares(
        self, z: Tensor, y: Tensor | None
    ) -> list[tuple[StandardGenerator, tuple[Tensor, Tensor | None]]]:
        """Each member that has something to do, with its part of the batch."""
        count = min(len(self.members), len(z))
        labels = y.tensor_split(count) if y is not None else (None,) * count
        parts = zip(z.tensor_split(count), labels, strict=True)
        return list(zip(self.members, parts, strict=False))  # type: ignore[arg-type]
