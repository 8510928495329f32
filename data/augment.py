"""Augmentation of a batch on its device, with all random draws from the given generator.

The three that nearly every run needs are written here, fast and without a global random state.
:class:`Kornia` provides many others.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.crop import at_once
from data.modality import require
from data.spec import InputSpec
from data.texts import PAD, UNKNOWN, word_like

LEAVE_OUT = "leave it out of the list, or put one of your own there"


class Augmentation(Protocol):
    """Maps a batch [B, *shape] to one of the same shape and value range."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor: ...


def through(augmentations: Sequence[Augmentation], x: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, *shape] after each augmentation in order."""
    for augment in augmentations:
        x = augment(x, generator)
    return x


class RandomCrop(nn.Module):
    """Shift each input by up to ``padding`` places either way; the uncovered border is blank.

    The same as padding on all sides and cropping at a random place, as is usual on CIFAR. Images
    move along both axes, and signals in time.

    Args:
        spec: of the inputs.
        padding: the largest shift, in pixels or samples.

    Raises:
        ValueError: for inputs without places, and a shift of a whole side or more.
    """

    def __init__(self, spec: InputSpec, padding: int = 4) -> None:
        super().__init__()
        require(spec, ("image", "signal"), "data.augment.RandomCrop", LEAVE_OUT)
        side = min(spec.shape[1:])
        if not 0 <= padding < side:
            raise ValueError(
                f"data.augment.RandomCrop shifts by less than the inputs' shortest side, which is "
                f"{side}, but padding={padding}: set a smaller one"
            )
        self.padding = padding
        self.blank = spec.kind.blank(spec.range)

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if x.dim() == 3:
            return self._shifted(x, generator)
        size, (height, width) = x.shape[0], x.shape[-2:]
        offset = torch.randint(
            2 * self.padding + 1, (2, size, 1), generator=generator, device=x.device
        )
        rows = offset[0] + torch.arange(height, device=x.device)
        columns = offset[1] + torch.arange(width, device=x.device)
        padded = F.pad(x, [self.padding] * 4, value=self.blank)
        image = torch.arange(size, device=x.device).view(-1, 1, 1)
        # channels come out last, which is the memory layout that convolutions are fastest in
        return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _shifted(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Signals [B, C, L]."""
        offset = torch.randint(
            2 * self.padding + 1, (len(x), 1, 1), generator=generator, device=x.device
        )
        padded = F.pad(x, [self.padding] * 2, value=self.blank)
        places = offset + torch.arange(x.shape[-1], device=x.device)
        return padded.gather(2, places.expand(-1, x.shape[1], -1))


class WordDropout(nn.Module):
    """Replace each word of a text by <unk> with the probability ``p``; padding stays.

    Args:
        spec: of the inputs.
        p: in [0, 1).

    Raises:
        ValueError: for inputs that are no texts, and a probability out of range.
    """

    def __init__(self, spec: InputSpec, p: float = 0.1) -> None:
        super().__init__()
        require(spec, ("text",), "data.augment.WordDropout", LEAVE_OUT)
        if not 0 <= p < 1:
            raise ValueError(f"p={p} is no probability in [0, 1): set another one")
        self.p = p
        self.pad, self.unknown = spec.words.index(PAD), spec.words.index(UNKNOWN)

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(len(x), 1, x.shape[2], generator=generator, device=x.device)
        dropped = (drawn < self.p) & (x[:, self.pad, None] < 0.5)
        return torch.where(dropped, word_like(x, self.unknown), x)


class RandomFlip(nn.Module):
    """Mirror each image left to right with the probability ``p``."""

    def __init__(self, spec: InputSpec, p: float = 0.5) -> None:
        super().__init__()
        require(spec, ("image",), "data.augment.RandomFlip", LEAVE_OUT)
        self.p = p

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        flip = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < self.p
        return torch.where(flip, x.flip(-1), x)


class RandomAffine(nn.Module):
    """Turn, scale and shift each image about its centre, bilinearly; the uncovered area is black.

    Args:
        degrees: largest rotation either way.
        translate: largest shift either way, as a fraction of the side.
        scale: largest change of size either way, as a fraction.
    """

    def __init__(
        self, spec: InputSpec, degrees: float = 10.0, translate: float = 0.1, scale: float = 0.1
    ) -> None:
        super().__init__()
        require(spec, ("image",), "data.augment.RandomAffine", LEAVE_OUT)
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.black = spec.range[0]

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(4, len(x), generator=generator, device=x.device) * 2 - 1
        angle = drawn[0] * math.radians(self.degrees)
        zoom = 1 / (1 + drawn[1] * self.scale)  # theta maps output places to input places
        shift = drawn[2:] * (2 * self.translate)  # in grid_sample's units a side is 2
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        aspect = x.shape[-2] / x.shape[-1]  # keeps a rotation rigid where sides differ
        rows = [cos, -sin * aspect, shift[0], sin / aspect, cos, shift[1]]
        theta = torch.stack(rows, dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x - self.black, grid, align_corners=False).add(self.black)


class Kornia(nn.Module):
    """Modules of kornia.augmentation in order, differentiable, with draws that a resume repeats.

    kornia draws from the global random state. Here that is seeded from the generator during the
    call and restored afterwards; the generator moves on, so that a second call with it sees another
    view. Any module that maps [B, C, H, W] to the same shape in [0, 1] will do.

    Args:
        spec: of the images, whose range is mapped to the [0, 1] that kornia takes, and back.
        augmentations: such as ``{_target_: kornia.augmentation.RandomRotation, degrees: 10.0}``.
            One with ``_partial_: true`` gets the images' ``size``, which crops need:
            ``{_target_: kornia.augmentation.RandomResizedCrop, _partial_: true}``.

    Raises:
        ValueError: without augmentations, or, when called, for one that fails on these images or
            changes their shape.
    """

    def __init__(
        self, spec: InputSpec, augmentations: Sequence[nn.Module | functools.partial[nn.Module]]
    ) -> None:
        super().__init__()
        require(spec, ("image",), "data.augment.Kornia", LEAVE_OUT)
        if not augmentations:
            raise ValueError("data.augment.Kornia needs augmentations: [{_target_: kornia...}]")
        self.range = spec.range
        size = tuple(spec.shape[-2:])
        self.augmentations = nn.ModuleList(
            at_once(a(size=size) if isinstance(a, functools.partial) else a) for a in augmentations
        )

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self.range
        with seeded(generator, x.device), torch.autocast(x.device.type, enabled=False):
            y = (x.float() - low) / (high - low)
            for augmentation in self.augmentations:
                y = self._checked(augmentation, y)
        return y.clamp(0, 1) * (high - low) + low

    @staticmethod
    def _checked(augmentation: nn.Module, x: Tensor) -> Tensor:
        name, shape = type(augmentation).__name__, tuple(x.shape[1:])
        try:
            y: Tensor = augmentation(x)
        except (TypeError, ValueError) as error:  # such as colour jitter of grey images
            reason = " ".join(str(error).split())
            raise ValueError(f"{name} fails on images of shape {shape}: {reason}") from error
        if y.shape != x.shape:
            raise ValueError(
                f"{name} makes images of shape {tuple(y.shape[1:])} from {shape}: "
                f"give it the size {list(shape[1:])}, or _partial_: true to have it filled in"
            )
        return y


@contextmanager
def seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """A context in which draws from the global random state depend on the generator alone.

    Afterwards the global state is as before, and the generator has moved on.
    """
    state = generator.get_state()  # on the host whatever the device: nothing has to wait
    torch.rand(1, generator=generator, device=generator.device)
    digest = hashlib.blake2b(state.numpy().tobytes(), digest_size=8).digest()
    seed = int.from_bytes(digest) >> 1
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
