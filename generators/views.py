"""Augmentations for synthesis: the same change for a whole batch, on its device."""

from __future__ import annotations

import random

import torch
from torch import Tensor


class Jitter:
    """One shift with wrap-around for the whole batch, and perhaps a mirror image (DeepInversion,
    CVPR 2020).

    Args:
        pixels: largest shift either way.
        flip: whether every other batch or so is mirrored left to right; not for digits or letters.

    Raises:
        ValueError: for a negative shift.
    """

    def __init__(self, pixels: int = 2, flip: bool = True) -> None:
        if pixels < 0:
            raise ValueError(f"jitter must be at least 0 pixels, not {pixels}")
        self.pixels, self.flip = pixels, flip

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        host = random.Random(generator.initial_seed())  # no waiting for the device
        down, right = (host.randint(-self.pixels, self.pixels) for _ in range(2))
        x = x.roll((down, right), dims=(-2, -1))
        return x.flip(-1) if self.flip and host.random() < 0.5 else x
