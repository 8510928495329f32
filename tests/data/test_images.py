"""Padding is lossless, resizing keeps uint8."""

import numpy as np
import torch

from data.images import fit, to_tensor


def test_small_images_are_padded_on_all_sides() -> None:
    images = torch.randint(1, 256, (2, 3, 28, 27), dtype=torch.uint8)
    padded = fit(images, 32)
    assert padded.shape == (2, 3, 32, 32)
    assert torch.equal(padded[:, :, 2:30, 2:29], images)
    assert padded.count_nonzero() == images.numel()


def test_large_images_are_resized() -> None:
    images = torch.full((2, 3, 40, 20), 77, dtype=torch.uint8)
    resized = fit(images, 16)
    assert resized.shape == (2, 3, 16, 16)
    assert resized.dtype == torch.uint8
    assert (resized == 77).all()


def test_antialiasing_sees_every_row() -> None:
    lines = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    lines[..., ::4, :] = 200  # between the rows that plain bilinear resizing would look at
    inner = fit(lines, 8)[..., 1:-1, 1:-1]
    assert (inner.int() - 50).abs().max() <= 15


def test_layout() -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    x = to_tensor(images)
    assert x.shape == (2, 3, 4, 5)
    assert x[1, 2, 3, 4] == images[1, 3, 4, 2]
    assert to_tensor(images[..., 0]).shape == (2, 1, 4, 5)
    assert fit(x, None) is x
