"""Pieces of the two photographs in scikit-learn: natural images without a download."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from core.runtime import Runtime
from data.dataset import Dataset
from data.modality import require
from data.spec import InputSpec

Arrays = tuple[NDArray[np.uint8], NDArray[np.integer]]

LARGEST = 4  # times the size wanted: the side of the largest piece before it is resized
SEEDS = {"train": 0, "test": 1}


def photographs(runtime: Runtime, spec: InputSpec, count: int = 4096) -> Dataset:
    """Squares cut at random, resized to a specification's size, of a Chinese temple and a flower.

    They are cut from the photographs (Galbraith, CC BY) at scales from 1 to 4, and are the same
    ones in every run. Labels say which photograph. "train" and "test" are cuts of the same two.

    Args:
        runtime: of the run.
        spec: of images with 1 channel, for grey, or 3, for colour.
        count: pieces in the training split; the test split has an eighth of them.

    Raises:
        ValueError: for inputs that are not images, a number of channels that photographs do not
            have, or a count below 8.
    """
    require(spec, ("image",), "photographs", "choose another method, or a domain of your own")
    in_channels, input_size = spec.shape[0], (spec.shape[1], spec.shape[2])
    if in_channels not in (1, 3) or count < 8:
        raise ValueError(
            f"photographs have 1 or 3 channels and at least 8 pieces, not {in_channels} and "
            f"{count}: choose another data set"
        )
    counts = {"train": count, "test": count // 8}
    readers = {
        which: functools.partial(_cut, SEEDS[which], counts[which], in_channels, input_size)
        for which in counts
    }
    return Dataset("photographs", readers, ["temple", "flower"], runtime)


def _cut(seed: int, count: int, channels: int, size: tuple[int, int]) -> Arrays:
    from sklearn.datasets import load_sample_images  # slow to import

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    photos = [
        torch.from_numpy(p.copy()).permute(2, 0, 1).float() for p in load_sample_images().images
    ]
    if channels == 1:
        photos = [p.mean(0, keepdim=True) for p in photos]
    pieces = torch.stack([_piece(photos[label], size, rng) for label in labels])
    images: NDArray[np.uint8] = pieces.round().clamp(0, 255).to(torch.uint8).numpy()
    return images.transpose(0, 2, 3, 1), labels


def _piece(photo: torch.Tensor, size: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
    """A random piece [C, *size] of a photograph [C, H, W], at a random scale."""
    largest = min(LARGEST, *(p / s for p, s in zip(photo.shape[1:], size, strict=True)))
    scale = rng.uniform(min(1.0, largest), largest)
    sides = [max(1, int(s * scale)) for s in size]
    top, left = (rng.integers(p - s + 1) for p, s in zip(photo.shape[1:], sides, strict=True))
    piece = photo[None, :, top : top + sides[0], left : left + sides[1]]
    return F.interpolate(piece, size, mode="bilinear", antialias=True, align_corners=False)[0]
