"""Augmentations for synthesis: the same change for a whole batch, on its device."""

from __future__ import annotations

import random

import torch
from torch import Tensor


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
