"""Images: uint8 arrays from files to tensors of a given size, and to a picture that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.checks import check_images
from data.modality import Modality, as_float

if TYPE_CHECKING:
    from data.spec import InputSpec

TILE, LARGEST = 64, 1200  # pixels: the least for one of small images, the most for a whole grid
SHOWN = 64  # images in a picture


class Image(Modality):
    """[C, H, W], stored in 8 bits; in files [H, W] or [H, W, C]."""

    name = "image"
    plural = "images"
    layout = "[C, H, W]"
    rank = 3
    places = (1, 2)
    storage = torch.uint8

    def check(self, where: str, arrays: NDArray[Any]) -> None:
        check_images(where, arrays)

    def tensor(self, arrays: NDArray[Any]) -> Tensor:
        return to_tensor(arrays)

    def array(self, x: Tensor) -> NDArray[Any]:
        return x.movedim(1, -1).contiguous().numpy() if x.shape[1] > 1 else x[:, 0].numpy()

    def fit(self, x: Tensor, size: int | None) -> Tensor:
        return fit(x, size)

    def picture(self, x: Tensor, spec: InputSpec) -> Tensor:
        """A grid of the first images.

        Small ones are enlarged by a whole factor, so that their pixels stay visible as they are; of
        large ones there are fewer, at least one. Channels after the third are left out.
        """
        from torchvision.utils import make_grid  # takes a moment to import

        low, high = spec.range
        x = (as_float(x[:SHOWN]) - low) / (high - low)
        x = (x[:, :3] if x.shape[1] >= 3 else x[:, :1]).clamp(0, 1)
        height, width = x.shape[2:]
        most = LARGEST - 2  # the grid's own border is 2 pixels wide, and so is that of a tile
        columns = max(1, min(round(len(x) ** 0.5), most // (width + 2)))
        rows = max(1, min(-(-len(x) // columns), most // (height + 2)))
        room = min((most // columns - 2) // width, (most // rows - 2) // height)
        times = max(1, min(-(-TILE // min(height, width)), room))
        x = x[: rows * columns].repeat_interleave(times, 2).repeat_interleave(times, 3)
        return make_grid(x, nrow=columns, padding=2, pad_value=0.5)


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Turn [N, H, W] or [N, H, W, C] into a uint8 [N, C, H, W] tensor."""
    assert images.dtype == np.uint8
    if images.ndim == 3:
        images = images[..., None]
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if not x.flags.writeable:
        x = x.copy()
    return torch.from_numpy(x)


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
