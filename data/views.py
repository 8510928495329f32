"""Two views of an input that show the same thing, for losses that compare them: nearly all of it,
and a part."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from data.augment import Augmentation, Kornia, RandomCrop
from data.spec import InputSpec
from data.texts import UNKNOWN, word_like

LEAST = "the part that is left is a share in (0, 1]: least=0.25"


def nearly_whole(spec: InputSpec, padding: int = 1) -> Augmentation:
    """An input shifted by up to ``padding`` places either way; vectors stay as they are.

    Images and signals are blank where nothing is left (:class:`data.augment.RandomCrop`), and the
    words of a text that leave one end come back at the other, of which padding may be a part.
    """
    if spec.modality in ("image", "signal"):
        return RandomCrop(spec, padding)
    return Turn(padding) if spec.kind.places else Unchanged()


def part(spec: InputSpec, least: float = 0.25) -> Augmentation:
    """A random part of an input, between the share ``least`` of it and all.

    Of images and signals it is a piece that is enlarged to the whole size. Values of vectors and
    words of texts have no such neighbours: some are replaced, by their mean and by <unk>.

    Raises:
        ValueError: for a share out of (0, 1].
    """
    if not 0 < least <= 1:
        raise ValueError(LEAST)
    if spec.modality == "image":
        from kornia.augmentation import RandomResizedCrop  # takes a second to import

        crop = functools.partial(RandomResizedCrop, scale=(least, 1.0))
        return Kornia(spec, [crop])  # type: ignore[list-item]
    return Piece(least) if spec.modality == "signal" else Masked(spec, least)


class Unchanged(nn.Module):
    """The inputs themselves."""

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x


class Turn(nn.Module):
    """Shift each input [B, C, L] by up to ``padding`` places either way, around its ends."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randint(
            -self.padding, self.padding + 1, (len(x), 1), generator=generator, device=x.device
        )
        places = (torch.arange(x.shape[2], device=x.device) + drawn) % x.shape[2]
        rows = torch.arange(len(x), device=x.device)[:, None]
        return x.transpose(1, 2)[rows, places].transpose(1, 2)


class Piece(nn.Module):
    """A piece of each signal [B, C, L], between ``least``·L and L samples long, drawn out linearly
    to L."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(2, len(x), 1, generator=generator, device=x.device)
        last = x.shape[2] - 1
        length = last * (self.least + (1 - self.least) * drawn[0])
        at = drawn[1] * (last - length) + length * torch.linspace(0, 1, last + 1, device=x.device)
        before = at.floor().clamp(0, max(last - 1, 0)).long()
        weight = (at - before)[:, None].to(x.dtype)
        low, high = (
            x.gather(2, i[:, None].expand(-1, x.shape[1], -1))
            for i in (before, (before + 1).clamp_max(last))
        )
        return torch.lerp(low, high, weight)


class Masked(nn.Module):
    """Values of vectors [B, D] replaced by their mean, and words of texts [B, V, L] by <unk>.

    Of each input another share is kept, uniform between ``least`` and 1, and each value or word
    with that probability.
    """

    def __init__(self, spec: InputSpec, least: float) -> None:
        super().__init__()
        self.spec, self.least = spec, least

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        ones = (1,) * (x.dim() - 1)
        share = torch.rand(len(x), *ones, generator=generator, device=x.device)
        axes = (len(x), *x.shape[1:]) if x.dim() == 2 else (len(x), 1, *x.shape[2:])
        drawn = torch.rand(axes, generator=generator, device=x.device)
        kept = drawn < self.least + (1 - self.least) * share
        return torch.where(kept, x, self._blank(x))

    def _blank(self, x: Tensor) -> Tensor:
        if self.spec.words:
            return word_like(x, self.spec.words.index(UNKNOWN))
        return self.spec.denormalize(torch.zeros_like(x[:1]))
