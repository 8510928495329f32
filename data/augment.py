"""Augmentation of a batch on its device, with every random draw from the generator given.

Written out, and not taken from kornia.augmentation: that draws from the global random state,
which a resumed run does not share.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.spec import InputSpec


class Augmentation(Protocol):
    """Maps a batch [B, C, H, W] to one of the same shape and value range."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor: ...


class RandomCrop(nn.Module):
    """Shift each image by up to ``padding`` pixels either way; what comes in is black.

    The same as padding on all sides and cropping at a random place, as is usual on CIFAR.
    """

    def __init__(self, spec: InputSpec, padding: int = 4) -> None:
        super().__init__()
        self.padding = padding
        self.black = spec.range[0]

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        size, (height, width) = x.shape[0], x.shape[-2:]
        offset = torch.randint(
            2 * self.padding + 1, (2, size, 1), generator=generator, device=x.device
        )
        rows = offset[0] + torch.arange(height, device=x.device)
        columns = offset[1] + torch.arange(width, device=x.device)
        padded = F.pad(x, [self.padding] * 4, value=self.black)
        image = torch.arange(size, device=x.device).view(-1, 1, 1)
        # channels come out last, which is the memory layout that convolutions are fastest in
        return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class RandomFlip(nn.Module):
    """Mirror each image left to right with the probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        flip = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < self.p
        return torch.where(flip, x.flip(-1), x)


class RandomAffine(nn.Module):
    """Turn, scale and shift each image about its centre, bilinearly; what comes in is black.

    Args:
        degrees: largest rotation either way.
        translate: largest shift either way, as a fraction of the side.
        scale: largest change of size either way, as a fraction.
    """

    def __init__(
        self, spec: InputSpec, degrees: float = 10.0, translate: float = 0.1, scale: float = 0.1
    ) -> None:
        super().__init__()
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
