"""A data set as uint8 tensors on the device, opened split by split, guarded if data-free."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.images import fit, to_tensors
from data.spec import InputSpec
from engine.runtime import Runtime

# Reads one split from where it lies: uint8 [N, H, W] or [N, H, W, C], and integers [N].
Reader = Callable[[], tuple[NDArray[np.uint8], NDArray[np.integer]]]

TRAINING = ("train", "val")  # the validation split is data that a data-free run does not have
HOLD_OUT_SEED = 0  # the same rows are held out in every run, so that runs compare
DEVICE_SHARE = 0.5  # of free device memory that one split may take; networks need the rest


class DataFreeError(ValueError):
    """Training data was asked for in a run that has none."""


class Split:
    """The images and labels of one split, kept as uint8 and handed out as floats.

    Args:
        images: [N, C, H, W] uint8.
        labels: [N] int64.
        device: where batches are needed. The split is held there if it takes at most half of
            the free memory, and in host memory otherwise.
        range: that 0 and 255 are mapped to.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
        range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.device = device
        self.range = range
        self.shape = tuple(images.shape[1:])
        self.rows_read = 0
        self.closed = False
        self._length = len(labels)
        self.storage = device if _fits(images, device) else torch.device("cpu")
        self._images = images.to(self.storage)
        self._labels = labels.to(self.storage)

    def __len__(self) -> int:
        return self._length

    @property
    def labels(self) -> Tensor:
        """Of every row [N] int64, to choose among them; no input is read."""
        if self.closed:
            raise _data_free("read")
        return self._labels

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] in ``range`` and labels [B] int64, on the device.

        Args:
            index: rows, as int64 on ``storage`` (elsewhere the device has to wait) or a slice.
        """
        images, labels = self._rows(index)
        low, high = self.range
        x = images.to(torch.float32, memory_format=torch.channels_last)
        return x.mul_((high - low) / 255).add_(low), labels

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every row once, in fixed order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, with values in 0..1."""
        total = square = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(self), 1024):
            x = self._rows(slice(start, start + 1024))[0].to(torch.float32).div_(255)
            total = total + x.sum((0, 2, 3), dtype=torch.float64)
            square = square + x.square().sum((0, 2, 3), dtype=torch.float64)
        count = len(self) * self.shape[1] * self.shape[2]
        mean = total / count
        std = (square / count - mean.square()).clamp_min(1e-12).sqrt()
        return tuple(mean.tolist()), tuple(std.tolist())

    def close(self) -> None:
        """Let go of the data; whoever still holds this split gets no row from it any more."""
        self.closed = True
        self._images, self._labels = self._images[:0], self._labels[:0]

    def _rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        if self.closed:
            raise _data_free("read")
        if isinstance(index, Tensor):
            index = index.to(self.storage)
        images, labels = self._images[index], self._labels[index]
        self.rows_read += len(labels)
        if self.storage != self.device:  # page-locked, so that the copy does not hold up the device
            images = images.pin_memory().to(self.device, non_blocking=True)
            labels = labels.pin_memory().to(self.device, non_blocking=True)
        return images, labels


class Dataset:
    """One data set: its splits, its class names, and what a teacher trained on it expects.

    Nothing is read before a split is opened, and no split is read for the sake of another.

    Args:
        name: for messages.
        readers: one for "train", one for "test", and one for "val" if the data set has it.
        classes: class names in label order.
        runtime: of the run; says which device the data is for.
        size: height and width wanted; None keeps the images' own. Smaller images are
            zero-padded, larger ones resized.
        val_fraction: of the training set to hold out as "val", in [0, 1); always the same rows.
        mean: one value per channel of the final images in 0..1; None computes it from "train".
        std: likewise; both are given or none.

    Raises:
        ValueError: for a fraction or a size out of range, or a mean without std.
    """

    def __init__(
        self,
        name: str,
        readers: Mapping[str, Reader],
        classes: Sequence[str],
        runtime: Runtime,
        size: int | None = None,
        val_fraction: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if not 0 <= val_fraction < 1:
            raise ValueError(f"data.val_fraction must be in [0, 1), but is {val_fraction}")
        if size is not None and size < 1:
            raise ValueError(f"data.size must be at least 1 (null: the images' own), not {size}")
        if (mean is None) != (std is None):
            raise ValueError(
                "give both data.dataset.mean and data.dataset.std, or neither to have them computed"
            )
        self.name = name
        self.classes = tuple(classes)
        self.size = size
        self.val_fraction = val_fraction
        self.range = (0.0, 1.0)
        self._readers = readers
        self._device = runtime.device
        self._moments = None if mean is None or std is None else (tuple(mean), tuple(std))
        self._splits: dict[str, Split] = {}
        self._training_open = True

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, channels first; known from the test split alone."""
        return self.open("test").shape

    @functools.cached_property
    def spec(self) -> InputSpec:
        """What a teacher trained here expects; reads the training split if no mean was given."""
        mean, std = self._moments or self.open("train").moments()
        return InputSpec(self.shape, (0.0, 1.0), mean, std)

    @property
    def real_training_inputs_read(self) -> int:
        """Rows of the training set handed out so far, or since the training data was closed."""
        return sum(self._splits[which].rows_read for which in TRAINING if which in self._splits)

    def open(self, which: str) -> Split:
        """The split "train", "val" or "test"; read at the first call.

        Raises:
            DataFreeError: for training data after :meth:`close_training`.
            ValueError: for "val" where there is none, or for data that cannot be read.
        """
        assert which in ("train", "val", "test"), which
        if which in TRAINING and not self._training_open:
            raise _data_free("open")
        if which not in self._splits:
            images, labels = to_tensors(*self._read(which))
            images = fit(images, self.size)
            self._splits[which] = Split(images, labels, self._device, self.range)
        return self._splits[which]

    def close_training(self) -> None:
        """From here on the run is data-free: training data is let go of and cannot be opened.

        The count of training inputs read starts anew, so that what a teacher was trained on
        before does not hide what its distillation reads.
        """
        self._training_open = False
        for which in TRAINING:
            if which in self._splits:
                self._splits.pop(which).close()

    def check(self, spec: InputSpec, num_classes: int) -> None:
        """Whether a teacher with this specification fits the data.

        Raises:
            ValueError: for a shape or a class count that disagrees, saying what to do.
        """
        if tuple(spec.shape) != self.shape:
            same = spec.shape[0] == self.shape[0] and len(set(spec.shape[1:])) == 1
            hint = f"set data.size={spec.shape[-1]}" if same else "choose another data set"
            raise ValueError(
                f"the teacher expects inputs of shape {tuple(spec.shape)}, but data {self.name} "
                f"gives {self.shape}: {hint}, or another teacher"
            )
        if num_classes != self.num_classes:
            raise ValueError(
                f"the teacher tells {num_classes} classes apart, but data {self.name} has "
                f"{self.num_classes}: choose another data set (data=...) or another teacher"
            )

    def adapt(self, spec: InputSpec, num_classes: int) -> None:
        """:meth:`check`, and from here on deliver values in the range that the teacher expects."""
        self.check(spec, num_classes)
        self.range = spec.range
        for split in self._splits.values():
            split.range = spec.range

    def _read(self, which: str) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        if which == "test" or not self.val_fraction:
            if which not in self._readers:
                raise ValueError(
                    f"data {self.name} has no validation split: hold some training data out "
                    "with data.val_fraction=0.1"
                )
            return self._readers[which]()
        images, labels = self._readers["train"]()
        order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(labels))
        held_out = round(self.val_fraction * len(labels))
        if not 0 < held_out < len(labels):
            raise ValueError(
                f"data.val_fraction={self.val_fraction} holds out {held_out} of {len(labels)} "
                "training inputs: training and validation need at least one each"
            )
        rows = np.sort(order[:held_out] if which == "val" else order[held_out:])
        return images[rows], labels[rows]


def _data_free(verb: str) -> DataFreeError:
    return DataFreeError(
        f"this run is data-free: it may not {verb} training data (train or val). "
        "Use method=kd to distil with the data, or method=scratch to train on it"
    )


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= DEVICE_SHARE * free
