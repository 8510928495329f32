"""A data set, opened and checked split by split, and closed to training if data-free."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.memory import check_memory
from core.runtime import Runtime
from data import checks
from data.categories import Column
from data.modality import labels_of, modality_named
from data.notes import note
from data.spec import InputSpec
from data.split import DataFreeError, Split, data_free

__all__ = ["DataFreeError", "Dataset", "Split"]

# Reads one split from its files: arrays of its modality, as uint8 [N, H, W] or [N, H, W, C] are
# images, and integers [N], which only a test split may lack; its result is checked.
Reader = Callable[[], tuple[NDArray[Any], NDArray[Any] | None]]

TRAINING = ("train", "val")  # the validation split is data that a data-free run does not have
HOLD_OUT_SEED = 0  # the same rows are held out in every run, so that runs can be compared
LEAST_STD = 1 / 255  # of a channel, as a share of the range: one that varies by less is constant
ABSENT = {
    "train": "training split: choose a method without data (see --help), or other data",
    "val": "validation split: hold some training data out with data.val_fraction=0.1",
    "test": "test split: there is nothing to evaluate on",
}
SMALLER = "set a smaller data.size, or take fewer {}"


class Dataset:
    """One data set: its splits, its class names, and what a teacher trained on it expects.

    Nothing is read before a split is opened, and opening a split does not read another.

    Args:
        name: for messages.
        readers: one for each split that exists, of "train", "val" and "test"; a data-free run needs
            none but "test", and not even that where ``spec`` is given.
        classes: class names in label order; kept in Unicode's form NFC.
        runtime: of the run; says which device the data is for.
        size: height and width wanted; None keeps the images' own. Smaller images are
            zero-padded, larger ones resized.
        val_fraction: of the training set to hold out as "val", in [0, 1); always the same rows.
        mean: one value per channel of the final images in 0..1; None computes it from "train".
        std: likewise; both are given or none.
        spec: of the inputs, if there is no data to tell.
        modality: the name of theirs.
        rate: samples in a second, of signals where it is known.
        words: the vocabulary of texts.
        groups, columns: of vectors; see :class:`data.spec.InputSpec`.

    Raises:
        ValueError: for a fraction or a size out of range, a mean without std, or class names
            that do not tell the classes apart.
    """

    class_only = False

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
        spec: InputSpec | None = None,
        modality: str = "image",
        rate: float | None = None,
        words: Sequence[str] = (),
        groups: Sequence[Sequence[int]] = (),
        columns: Sequence[Column] = (),
    ) -> None:
        checks.check_settings(size, val_fraction, mean, std)
        self.name = name
        self.classes = checks.check_classes(name, classes)
        self.size = size
        self.val_fraction = val_fraction
        self.kind, self.rate = spec.kind if spec else modality_named(modality), rate
        self.range, self.words = self.kind.natural, tuple(words)
        self.groups, self.columns = tuple((a, b) for a, b in groups), tuple(columns)
        if spec is not None:
            self.range, self.words, self.groups = spec.range, spec.words, spec.groups
            self.rate, self.columns, self.spec = spec.rate, spec.columns, spec
        self._readers = readers
        self._runtime = runtime
        self._moments = None if mean is None or std is None else (tuple(mean), tuple(std))
        if self.kind.discrete:  # which is not normalised
            self._moments = (0.0,), (1.0,)
        self._splits: dict[str, Split] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of images as they were read
        self._training_open = True

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def known(self) -> tuple[Any, ...]:
        """Of its specification: modality, rate, words, groups and columns."""
        return self.kind.name, self.rate, self.words, self.groups, self.columns

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, channels first; known without training data."""
        return self.open("test").shape if self.has("test") else self.spec.shape

    def has(self, which: str) -> bool:
        """Whether there is such a split to open."""
        return which in self._readers or (which == "val" and self.val_fraction > 0)

    @functools.cached_property
    def spec(self) -> InputSpec:
        """What a teacher trained here expects; reads the training split if no mean was given.

        A constant channel, such as alpha, has no scale: its std is taken as 1, since dividing the
        zeros of padding by almost nothing would give huge numbers.
        """
        mean, std = self._moments or self.open("train").moments()
        low, high = self.kind.natural
        if self._moments is None:
            least = LEAST_STD * (high - low)
            for i, value in enumerate(std):
                if value < least:
                    line = f"data {self.name}: channel {i + 1} of {len(std)} is all but constant"
                    note(self._runtime, f"{line} (std {value:.1g}); its std is taken as 1")
            std = tuple(1.0 if value < least else value for value in std)
        return InputSpec(self.shape, (low, high), mean, std, *self.known)

    def before_transform(self) -> InputSpec:
        """:attr:`spec` where a teacher sees these inputs through a transform.

        Its file has the mean and std of what comes out. Those of what goes in are only the start of
        a generator: if they are not given either, a data-free run takes those of uniform noise.
        """
        if self._moments or self._training_open or not self._readers:
            return self.spec
        low, high = self.kind.natural
        mean, std = (low + high) / 2, (high - low) / math.sqrt(12)
        note(
            self._runtime,
            f"data {self.name}: the mean and std of what goes into teacher.transform are unknown; "
            f"those of uniform noise are taken, {mean:.3g} and {std:.3g} (others: "
            "data.dataset.mean=[M] data.dataset.std=[S])",
        )
        moments = (mean,) * self.shape[0], (std,) * self.shape[0]
        return InputSpec(self.shape, (low, high), *moments, *self.known)

    @property
    def real_training_inputs_read(self) -> int:
        """Rows of the training set handed out so far, or since the training data was closed."""
        return sum(self._splits[which].rows_read for which in TRAINING if which in self._splits)

    def open(self, which: str) -> Split:
        """The split "train", "val" or "test"; read at the first call.

        Raises:
            DataFreeError: for training data after :meth:`close_training`.
            ValueError: for "val" where there is none, for data that cannot be read or does not
                fit into memory, and for images of another shape than those of an open split.
        """
        assert which in ("train", "val", "test"), which
        if which in TRAINING and not self._training_open:
            raise data_free("open")
        if which not in self._splits:
            try:
                self._splits[which] = self._load(which)
            except MemoryError as error:  # of a process that is allowed less than there is
                raise ValueError(
                    f"the {which} {self.kind.plural} of data {self.name} do not fit into memory: "
                    + SMALLER.format(self.kind.plural)
                ) from error
        return self._splits[which]

    def close_training(self) -> None:
        """Make the run data-free from here on: training data is released and cannot be opened.

        The count of training inputs read starts anew, so that what a teacher was trained on
        before does not hide what its distillation reads.
        """
        self._training_open = False
        for which in TRAINING:
            if which in self._splits:
                self._splits.pop(which).close()

    def check(self, spec: InputSpec, num_classes: int) -> None:
        """Check that a teacher with this specification fits the data.

        Raises:
            ValueError: for a shape or a class count that disagrees, saying what to do.
        """
        if spec.modality != self.kind.name:
            raise ValueError(
                f"the teacher takes {spec.kind.plural} {list(spec.shape)}, but data {self.name} "
                f"has {self.kind.plural} {list(self.shape)}: choose other data or another teacher"
            )
        checks.check_vocabulary(f"data {self.name}", self.words, spec.words)
        if spec.rate and self.rate and spec.rate != self.rate:
            raise ValueError(
                f"the teacher takes {spec.kind.plural} of {spec.rate:g} samples in a second, but "
                f"those of data {self.name} have {self.rate:g}: resample them, or choose another "
                "teacher"
            )
        if tuple(spec.shape) != self.shape:
            hint = f"{checks.resized(spec.shape, self.shape)}, or another teacher"
            raise ValueError(
                f"the teacher expects inputs of shape {tuple(spec.shape)}, but data {self.name} "
                f"gives {self.shape}: {hint}"
            )
        if spec.groups != self.groups:
            blocks = [[list(group) for group in groups] for groups in (spec.groups, self.groups)]
            raise ValueError(
                f"the teacher has categories in columns {blocks[0]}, but data {self.name} in "
                f"{blocks[1]}: choose the data that it was trained on, or another teacher"
            )
        checks.check_columns(self.name, self.columns, spec.columns)
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

    def _load(self, which: str) -> Split:
        where = f"data {self.name}: {which}"
        arrays, labels = self._read(which)
        numbers = checks.check_split(where, arrays, labels, self.num_classes, self.kind)
        if self.words and arrays.max() >= len(self.words):
            raise ValueError(f"{where} has word {arrays.max()}, but there are {len(self.words)}")
        if doubt := self.kind.doubt(arrays):
            note(self._runtime, f"{where}: {doubt}")
        inputs = self.kind.tensor(arrays)
        self._check_shape(which, inputs)
        present = range(self.num_classes) if numbers is None else np.unique(numbers).tolist()
        missing = sorted(set(range(self.num_classes)) - set(present))
        if missing and which != "val":  # its few images may well be of few classes
            names = ", ".join(self.classes[i] for i in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            note(self._runtime, f"{where} has no {self.kind.name} of the class(es) {names}{more}")
        device = self._runtime.device
        fitted = self.kind.fit(inputs, self.size)
        shape = self.kind.shape(fitted.shape[1:], self.words)
        return Split(fitted, labels_of(numbers), device, self.kind.name, self.range, shape)

    def _check_shape(self, which: str, inputs: Tensor) -> None:
        """Check that inputs of all splits have one shape and fit into memory at the given size."""
        shape, many = self.kind.shape(inputs.shape[1:], self.words), self.kind.plural
        for other, known in self._shapes.items():
            if shape != known:
                raise ValueError(
                    f"data {self.name}: {many} of {other} are {'x'.join(map(str, known))}, but "
                    f"those of {which} {'x'.join(map(str, shape))} {self.kind.layout}: "
                    f"bring all {many} to one size and number of channels"
                )
        self._shapes[which] = shape
        places = [shape[axis] if self.size is None else self.size for axis in self.kind.places]
        stored = self.kind.stored((shape[0], *places))
        needed = len(inputs) * math.prod(stored) * inputs.element_size()
        what = f"the {len(inputs)} {which} {many} of data {self.name}"
        check_memory(needed, what, SMALLER.format(many))

    def _read(self, which: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
        from_train = which == "val" and self.val_fraction > 0
        if (source := "train" if from_train else which) not in self._readers:
            raise ValueError(f"data {self.name} has no {ABSENT[source]}")
        images, labels = self._readers[source]()
        if which == "test":
            return images, labels
        if labels is None:
            raise ValueError(f"data {self.name}: {source} has no labels, which training needs")
        if not self.val_fraction:
            return images, labels
        order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(labels))
        held_out = round(self.val_fraction * len(labels))
        if not 0 < held_out < len(labels):
            raise ValueError(
                f"data.val_fraction={self.val_fraction} holds out {held_out} of {len(labels)} "
                "training inputs: training and validation need at least one each"
            )
        rows = np.sort(order[:held_out] if which == "val" else order[held_out:])
        return images[rows], labels[rows]
