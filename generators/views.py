"""Views of what is synthesized, for every modality: each does what suits the inputs."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.augment import Augmentation, Kornia, RandomCrop
from data.categories import parts
from data.modality import require
from data.spec import InputSpec
from data.texts import UNKNOWN, word_like

OWN = "name views of your own under synthesis"


class Jitter:
    """One shift with wrap-around for the whole batch, and perhaps a mirror image (DeepInversion,
    CVPR 2020).

    Images move along both axes, and signals in time. Vectors have no places, and stay as they are.

    Args:
        pixels: largest shift either way, in pixels or samples.
        flip: whether every other batch or so is mirrored left to right; not for digits or letters,
            and never a signal.

    Raises:
        ValueError: for a negative shift.
    """

    def __init__(self, pixels: int = 2, flip: bool = True) -> None:
        if pixels < 0:
            raise ValueError(f"jitter must be at least 0 pixels, not {pixels}")
        self.pixels, self.flip = pixels, flip

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Map [B, *shape] to the same shape."""
        axes = tuple(range(2, x.dim()))
        if not axes:
            return x
        host = random.Random(generator.initial_seed())  # no waiting for the device
        shifts = tuple(host.randint(-self.pixels, self.pixels) for _ in axes)
        x = x.roll(shifts, dims=axes)
        if x.dim() != 4:
            return x
        return x.flip(-1) if self.flip and host.random() < 0.5 else x


class GlobalView(nn.Module):
    """Nearly all of each input, as contrastive methods show it: a shift by a few places.

    Images and signals are shifted as by :class:`data.augment.RandomCrop`. The words of a text that
    leave one end come back at the other. Vectors have no places, and stay as they are.

    Args:
        spec: of the inputs.
        padding: the largest shift, in pixels or samples.

    Raises:
        ValueError: for another modality, and a shift of a whole side or more.
    """

    def __init__(self, spec: InputSpec, padding: int = 1) -> None:
        super().__init__()
        require(spec, PARTS, "generators.views.GlobalView", OWN)
        self.shift: Augmentation | None = None
        if spec.kind.places:
            self.shift = _Turn(padding) if spec.words else RandomCrop(spec, padding)

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x if self.shift is None else self.shift(x, generator)  # type: ignore[no-any-return]


class LocalView(nn.Module):
    """A random part of each input, as contrastive methods show it beside the whole.

    Of images it is a box, which is resized to the whole (kornia's RandomResizedCrop). Of signals it
    is a stretch of time (COLA, Saeed et al., ICASSP 2021), which stays where it is and is not
    resized, as that would change its pitch; before and after it there is silence. Of vectors it is
    a choice of columns; the others have their mean, in place of the values of other rows that VIME
    (Yoon et al., NeurIPS 2020) puts there. Columns that are one category are kept or left together.
    Of texts it is a choice of words; the others are <unk>.

    Args:
        spec: of the inputs.
        scale: smallest and largest share of an input, uniform between the two; of a vector or
            a text, the share that is expected.

    Raises:
        ValueError: for another modality, and for shares that are not between 0 and 1.
    """

    def __init__(self, spec: InputSpec, scale: Sequence[float] = (0.25, 1.0)) -> None:
        super().__init__()
        require(spec, PARTS, "generators.views.LocalView", OWN)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale is two ascending shares of an input, but is {list(scale)}")
        self.part = PARTS[spec.modality](spec, (scale[0], scale[1]))

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.part(x, generator)


def _box(spec: InputSpec, scale: tuple[float, float]) -> Augmentation:
    from kornia.augmentation import RandomResizedCrop  # takes a second to import

    crop: Any = functools.partial(RandomResizedCrop, scale=scale)
    return Kornia(spec, [crop])


class _Stretch:
    """A stretch of each signal [B, C, L], and silence before and after it."""

    def __init__(self, spec: InputSpec, scale: tuple[float, float]) -> None:
        self.scale, self.blank = scale, spec.kind.blank(spec.range)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        length = x.shape[-1]
        share, place = torch.rand(2, len(x), 1, 1, generator=generator, device=x.device)
        kept = (_between(self.scale, share) * length).round().clamp_min(1)
        first = (place * (length - kept + 1)).floor()
        sample = torch.arange(length, device=x.device)
        inside = (sample >= first) & (sample < first + kept)
        return torch.where(inside, x, self.blank)


class _Columns:
    """Some columns of each vector [B, D]; the others have their mean."""

    def __init__(self, spec: InputSpec, scale: tuple[float, float]) -> None:
        self.scale, self.spec = scale, spec

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(len(x), 1, generator=generator, device=x.device)
        drawn = torch.rand(x.shape, generator=generator, device=x.device)
        if groups := self.spec.groups:  # which have the draw of their first column
            pieces = [p[:, :1].expand_as(p) if one else p for p, one in parts(drawn, groups)]
            drawn = torch.cat(pieces, dim=1)
        least = drawn.amin(dim=1, keepdim=True)  # one column at least is kept
        kept = drawn <= _between(self.scale, share).maximum(least)
        mean = self.spec.denormalize(torch.zeros_like(x[:1]))
        return torch.where(kept, x, mean)


class _Words:
    """Some words of each text [B, V, L]; the others are <unk>."""

    def __init__(self, spec: InputSpec, scale: tuple[float, float]) -> None:
        self.scale, self.unknown = scale, spec.words.index(UNKNOWN)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(len(x), 1, 1, generator=generator, device=x.device)
        drawn = torch.rand(len(x), 1, x.shape[2], generator=generator, device=x.device)
        least = drawn.amin(dim=2, keepdim=True)  # one word at least is kept
        kept = drawn <= _between(self.scale, share).maximum(least)
        return torch.where(kept, x, word_like(x, self.unknown))


class _Turn:
    """Each text [B, V, L] shifted by up to ``padding`` places either way, around its ends."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        by = torch.randint(
            -self.padding, self.padding + 1, (len(x), 1), generator=generator, device=x.device
        )
        places = (torch.arange(x.shape[2], device=x.device) + by) % x.shape[2]
        rows = torch.arange(len(x), device=x.device)[:, None]
        return x.transpose(1, 2)[rows, places].transpose(1, 2)


def _between(ends: tuple[float, float], share: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * share


PARTS = {"image": _box, "signal": _Stretch, "vector": _Columns, "text": _Words}
