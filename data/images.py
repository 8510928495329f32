"""Converts arrays from files to uint8 tensors of a given size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def to_tensors(
    images: NDArray[np.uint8], labels: NDArray[np.integer] | None
) -> tuple[Tensor, Tensor | None]:
    """Turn [N, H, W] or [N, H, W, C] and [N] into uint8 [N, C, H, W] and int64 [N] tensors."""
    assert images.dtype == np.uint8
    if images.ndim == 3:
        images = images[..., None]
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if not x.flags.writeable:
        x = x.copy()
    if labels is None:
        return torch.from_numpy(x), None
    assert labels.shape == (len(images),)
    return torch.from_numpy(x), torch.from_numpy(labels.astype(np.int64))


def fit(images: Tensor, size: int | None) -> Tensor:
    """Bring uint8 images [N, C, H, W] to ``size`` x ``size``; None leaves them alone.

    Images with no larger side are zero-padded on all sides, which loses nothing; others are resized
    (bilinear with antialiasing), which changes the aspect ratio if they are not square.
    """
    height, width = images.shape[-2:]
    if size is None or (height, width) == (size, size):
        return images
    if height <= size and width <= size:
        top, left = (size - height) // 2, (size - width) // 2
        return F.pad(images, (left, size - width - left, top, size - height - top))
    return F.interpolate(
        images, (size, size), mode="bilinear", antialias=True, align_corners=False
    ).contiguous()
