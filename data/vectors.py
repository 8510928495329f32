"""Vectors: rows of a table, with a picture of their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.categories import blocks_of, relaxed
from data.modality import Modality, as_float

if TYPE_CHECKING:
    from data.spec import InputSpec

ROWS, LARGEST = 32, 1200  # of a picture
SIDES = (6, 32)  # pixels of a value
FULL = 2.5  # standard deviations from the mean that have the full colour
BLUE, WHITE, RED = (0.13, 0.35, 0.75), (0.97, 0.97, 0.97), (0.75, 0.15, 0.15)


class Vector(Modality):
    """[D]: values in [0, 1] without an order, such as the columns of a table.

    Every value is a channel: it has a mean and a standard deviation of its own.
    """

    name = "vector"
    plural = "vectors"
    layout = "[D]"
    rank = 1
    storage = torch.float32

    def check(self, where: str, arrays: NDArray[Any]) -> None:
        if arrays.dtype.kind not in "fiub" or arrays.ndim != 2:
            raise ValueError(
                f"{where} is {arrays.dtype} of shape {arrays.shape}; numbers [N, D] are expected"
            )
        with np.errstate(invalid="ignore"):
            bad = ~((arrays >= 0) & (arrays <= 1)).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            column = int((~((arrays[row] >= 0) & (arrays[row] <= 1))).argmax())
            raise ValueError(
                f"{where}: column {column} of row {row} is {arrays[row, column]}, which is not in "
                "0..1: scale each column by its smallest and largest value in the training split"
            )

    def tensor(self, arrays: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(arrays, dtype=np.float32))

    def free(self, values: Tensor, spec: InputSpec) -> Tensor:
        """By a sigmoid, and by a softmax for each block of columns that are one category."""
        low, high = spec.range
        return low + (high - low) * relaxed(values, spec.groups)

    def standard(self, values: Tensor, spec: InputSpec) -> Tensor:
        x = spec.denormalize(values)
        return blocks_of(self.free(values, spec), x, spec.groups) if spec.groups else x

    def limits(self, values: Tensor, spec: InputSpec) -> tuple[Tensor, Tensor]:
        low, high = (spec.normalize(torch.full_like(values[:1], end)) for end in spec.range)
        for start, end in spec.groups:  # a softmax takes any values
            low[:, start:end], high[:, start:end] = -torch.inf, torch.inf
        return low, high

    def picture(self, x: Tensor, spec: InputSpec) -> Tensor:
        """A table of coloured squares: a row for each of the first 32 vectors, a column a value.

        White is the value's mean, and full blue or red 2.5 standard deviations below or above it.
        Values after the two-hundredth are left out.
        """
        most = LARGEST // SIDES[0]
        shown = (spec.normalize(as_float(x[:ROWS]))[:, :most] / FULL).clamp(-1, 1)
        side = max(SIDES[0], min(SIDES[1], LARGEST // max(shown.shape)))
        amount = shown.abs()[None]
        ends = torch.where(shown[None] < 0, _colour(BLUE), _colour(RED))
        colour = _colour(WHITE) * (1 - amount) + ends * amount
        big = colour.repeat_interleave(side, 1).repeat_interleave(side, 2)
        big[:, ::side] = big[:, :, ::side] = 1.0  # thin lines between the squares
        return big


def _colour(rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb).view(3, 1, 1)
