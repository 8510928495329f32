"""kornia's resized crops, cut from the whole batch at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def at_once(augmentation: nn.Module) -> nn.Module:
    """The augmentation itself; if it is a bilinear ``RandomResizedCrop``, it now cuts all images
    together.

    kornia slices and resizes image by image, which takes a dozen kernel launches each on a GPU. The
    boxes that it draws stay the same, and pixels differ by no more than rounding.
    """
    from kornia.augmentation import RandomResizedCrop  # takes a second to import, if not yet there
    from kornia.constants import Resample

    if isinstance(augmentation, RandomResizedCrop):
        flags = augmentation.flags
        if flags["cropping_mode"] == "slice" and flags["resample"] == Resample.BILINEAR:
            vars(augmentation)["apply_transform"] = resized_crops
    return augmentation


def resized_crops(
    x: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
) -> Tensor:
    """A box of each image [B, C, H, W], resized to ``flags["size"]``; the arguments are kornia's.

    Bilinear resizing is a product with two matrices, one for the rows and one for the columns.
    ``params["src"]`` [B, 4, 2] holds the corners (x, y) of the boxes, clockwise from the upper left
    one, both ends included.
    """
    corners = params["src"]
    if x.is_cuda and not corners.is_cuda:  # page-locked, so that the copy holds up nothing
        corners = corners.pin_memory()
    corners = corners.to(x.device, x.dtype, non_blocking=True)
    (left, top), (right, bottom) = corners[:, 0].unbind(1), corners[:, 2].unbind(1)
    height, width = flags["size"]
    aligned = bool(flags["align_corners"])
    rows = _weights(top, bottom, height, x.shape[-2], aligned)
    columns = _weights(left, right, width, x.shape[-1], aligned)
    return rows[:, None] @ x @ columns[:, None].mT


def _weights(first: Tensor, last: Tensor, size: int, length: int, aligned: bool) -> Tensor:
    """[B, size, length]: how much each of ``length`` pixels counts in each of ``size`` new ones."""
    place = torch.arange(size, device=first.device, dtype=first.dtype)
    if aligned:  # the outermost pixels of the box are those of the result
        inside = place * ((last - first) / max(size - 1, 1))[:, None]
    else:
        inside = (place + 0.5) * ((last - first + 1) / size)[:, None] - 0.5
        inside = inside.clamp(min=0).minimum((last - first)[:, None])
    pixel = torch.arange(length, device=first.device, dtype=first.dtype)
    return (1 - (first[:, None] + inside)[:, :, None].sub(pixel).abs()).clamp(min=0)
