"""One split as it is stored, on the device, handed out as floats and counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core.memory import free_memory
from data.modality import modality_named

DEVICE_SHARE = 0.5  # of free device memory that one split may take; networks need the rest


class DataFreeError(ValueError):
    """Training data was asked for in a run that has none."""


class Split:
    """The inputs and labels of one split, kept as they are stored and handed out as floats.

    Args:
        images: [N, *shape], as the modality stores them, such as uint8 [N, C, H, W].
        labels: [N] int64, or None if they are unknown.
        device: where batches are needed. The split is held there if it takes at most half of
            the free memory, and in host memory otherwise.
        modality: the name of theirs.
        range: that stored values are mapped to; None is the modality's natural one.
        shape: of one input, where it is stored with another one.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        device: torch.device,
        modality: str = "image",
        range: tuple[float, float] | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        self.device, self.kind = device, modality_named(modality)
        self.range = range or self.kind.natural
        self.shape = tuple(images.shape[1:] if shape is None else shape)
        self.rows_read = 0
        self.closed = False
        self._length = len(images)
        self.storage = device if _fits(images, device) else torch.device("cpu")
        self._images = images.to(self.storage)
        self._labels = None if labels is None else labels.to(self.storage)

    def __len__(self) -> int:
        return self._length

    @property
    def labelled(self) -> bool:
        """Whether the labels are known."""
        return self._labels is not None

    @property
    def labels(self) -> Tensor:
        """The label of every row [N] int64, to choose among them; no input is read."""
        if self.closed:
            raise data_free("read")
        assert self._labels is not None, "only a test split may lack labels"
        return self._labels

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """Inputs [B, *shape] in ``range`` and labels [B] int64 or None, on the device.

        Args:
            index: rows, as int64 on ``storage`` (elsewhere the device has to wait) or a slice.
        """
        images, labels = self._rows(index)
        return self.kind.decode(images, self.shape, self.range), labels

    def stored(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """The same rows as they are stored."""
        return self._rows(index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Every row once, in fixed order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of values in the natural range."""
        total = square = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(self), 1024):
            rows = self._rows(slice(start, start + 1024))[0]
            x = self.kind.decode(rows, self.shape, self.kind.natural)
            axes = [axis for axis in range(x.dim()) if axis != 1]
            total = total + x.sum(axes, dtype=torch.float64)
            square = square + x.square().sum(axes, dtype=torch.float64)
        count = len(self) * math.prod(self.shape[1:])
        mean = total / count
        std = (square / count - mean.square()).clamp_min(1e-12).sqrt()
        return tuple(mean.tolist()), tuple(std.tolist())

    def close(self) -> None:
        """Release the data; anything that still holds this split gets no more rows from it."""
        self.closed = True
        self._images = self._images[:0]
        self._labels = None if self._labels is None else self._labels[:0]

    def _rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        if self.closed:
            raise data_free("read")
        if isinstance(index, Tensor):
            index = index.to(self.storage)
        images = self._to_device(self._images[index])
        self.rows_read += len(images)
        return images, None if self._labels is None else self._to_device(self._labels[index])

    def _to_device(self, rows: Tensor) -> Tensor:
        if self.storage == self.device:
            return rows
        # page-locked, so that the copy does not hold up the device
        return rows.pin_memory().to(self.device, non_blocking=True)


def data_free(verb: str) -> DataFreeError:
    return DataFreeError(
        f"this run is data-free: it may not {verb} training data (train or val). "
        "Use method=kd to distil with the data, or method=scratch to train on it"
    )


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return images.nbytes <= DEVICE_SHARE * free_memory(device)
