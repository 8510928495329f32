"""Data sets of pairs: two arrays of one file, or two data sets of the same classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from core.runtime import Runtime
from data import archive
from data.dataset import Dataset
from data.files import classes_in, existing, npz_split, rate_in
from data.pair import PARTS, Pair, pair_of, plain_spec
from data.spec import Expected
from data.split import Split, data_free

KINDS = "give data.dataset.kinds=[image,signal], of a and of b: image, signal or vector"


class PairSplit(Split):
    """A split of pairs: rows of two splits, put together when they are asked for.

    Args:
        a: the first inputs.
        b: the second ones.
        rows: [N, 2] int64, which of each make a pair.
        labels: [N] int64, or None.
        kind: of the pairs.
    """

    def __init__(self, a: Split, b: Split, rows: Tensor, labels: Tensor | None, kind: Pair) -> None:
        super().__init__(rows, labels, a.device, kind.name)
        self.pair, self.parts, self.shape = kind, (a, b), kind.pair_shape

    def close(self) -> None:
        super().close()
        for part in self.parts:
            part.close()

    def _rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        if self.closed:
            raise data_free("read")
        if isinstance(index, Tensor):
            index = index.to(self.storage)
        rows = self._images[index]
        self.rows_read += len(rows)
        both = [part.batch(rows[:, i])[0] for i, part in enumerate(self.parts)]
        return self.pair.join(*both), None if self._labels is None else self._labels[index]


class Pairs(Dataset):
    """Two data sets as one, whose inputs are pairs; :class:`data.transforms.Part` takes one part.

    Args:
        name: for messages.
        a: the first.
        b: the second, of the same classes.
        runtime: of the run.
        class_only: whether a pair shares its class alone. Then both may be of any size: every pair
            of a class is the next input of a and the next of b, of which the fewer ones recur.
            Otherwise row i of both belong together.

    Raises:
        ValueError: for different classes; when a split is opened, for rows that do not belong
            together.
    """

    def __init__(
        self, name: str, a: Dataset, b: Dataset, runtime: Runtime, class_only: bool = False
    ) -> None:
        if a.classes != b.classes:
            raise ValueError(
                f"the classes of {a.name} and {b.name} are not the same: {_some(a.classes)}; "
                f"{_some(b.classes)}"
            )
        self.parts, self.class_only = (a, b), class_only
        kinds = [plain_spec(part.kind.name, part.shape, part.rate) for part in self.parts]
        self.pair = pair_of(*kinds)
        rate = next((spec.rate for spec in kinds if spec.rate is not None), None)
        given: Any = {"modality": self.pair.name, "rate": rate}  # its moments are never used
        super().__init__(name, {}, a.classes, runtime, None, 0.0, (0.5,), (0.25,), **given)

    def has(self, which: str) -> bool:
        return all(part.has(which) for part in self.parts)

    def close_training(self) -> None:
        super().close_training()
        for part in self.parts:
            part.close_training()

    def _load(self, which: str) -> Split:
        a, b = (part.open(which) for part in self.parts)
        if self.class_only:
            rows, label = self._alike(which, a, b)
            return PairSplit(a, b, rows, label, self.pair)
        if len(a) != len(b):
            raise ValueError(
                f"data {self.name}: {which} has {len(a)} inputs of {self.parts[0].name}, but "
                f"{len(b)} of {self.parts[1].name}: row i of both is one pair"
            )
        rows = torch.arange(len(a))[:, None].expand(-1, 2)
        return PairSplit(a, b, rows, a.labels if a.labelled else None, self.pair)

    def _alike(self, which: str, a: Split, b: Split) -> tuple[Tensor, Tensor]:
        """Rows [N, 2] of the same class, and their labels [N]."""
        for split, part in zip((a, b), self.parts, strict=True):
            if not split.labelled:
                raise ValueError(f"data {part.name}: {which} has no labels, by which it is paired")
        rows, labels = [], []
        for number, name in enumerate(self.classes):
            found = [(split.labels == number).nonzero()[:, 0].cpu() for split in (a, b)]
            for some, part in zip(found, self.parts, strict=True):
                if not len(some):
                    raise ValueError(f"data {part.name}: {which} has nothing of the class {name}")
            turn = torch.arange(max(map(len, found)))
            rows.append(torch.stack([some[turn % len(some)] for some in found], dim=1))
            labels.append(torch.full_like(turn, number))
        return torch.cat(rows), torch.cat(labels)


def by_class(name: str, a: Dataset, b: Dataset, runtime: Runtime) -> Dataset:
    """Two data sets of the same classes, whose inputs have nothing but the class in common.

    Args:
        name: for messages.
        a: the first, such as written digits.
        b: the second, such as spoken ones.
    """
    return Pairs(name, a, b, runtime, class_only=True)


def npz_pairs(
    path: str | Path | None,
    runtime: Runtime,
    kinds: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    val_fraction: float = 0.0,
    rate: float | None = None,
    expected: Callable[[], Expected] | None = None,
) -> Dataset:
    """A file with ``train_inputs_a, train_inputs_b, train_labels``, and ``test_*`` likewise.

    Row i of both arrays is one thing in two modalities. Images are uint8 [N, H, W] or [N, H, W, C],
    signals int16 [N, L], or floats in -1..1 [N, C, L], vectors numbers in 0..1 [N, D].

    Args:
        kinds: of a and of b: image, signal or vector. None tells by type and number of axes;
            signals that are floats [N, L] look like vectors, and have to be named.
        classes: see :func:`data.files.npz`.
        size: of images; None leaves them alone.
        rate: samples in a second, of signals; None takes the file's ``rate``, if it has one.
        expected: by a teacher; gives the classes where neither file nor user names them.

    Raises:
        ValueError: for a file that is missing or lacks an array, naming it, and for arrays of
            different lengths or of a kind that is not known; for those of training, when they are
            opened.
    """
    file = existing(path)
    keys = archive.keys(file)
    _check_keys(file, keys)
    names = classes_in(file, keys, classes, expected)
    if kinds is not None and len(kinds) != len(PARTS):
        raise ValueError(f"data.dataset.kinds={list(kinds)} names {len(kinds)} kinds: {KINDS}")
    if rate is None and "rate" in keys:
        rate = rate_in(file)
    parts: list[Dataset] = []
    splits = [which for which in ("train", "val", "test") if f"{which}_inputs_a" in keys]
    for part, given in zip(PARTS, kinds or (None, None), strict=True):
        kind = _kind(file, f"test_inputs_{part}", given)
        readers = {w: functools.partial(_read, file, w, part, keys) for w in splits}
        of_kind: Any = {"modality": kind, "rate": rate if kind == "signal" else None}
        of_kind |= {"size": size if kind == "image" else None, "val_fraction": val_fraction}
        of_kind |= {"mean": (0.5,), "std": (0.25,)}  # never used
        parts.append(Dataset(f"{file} inputs_{part}", readers, names, runtime, **of_kind))
    return Pairs(str(file), parts[0], parts[1], runtime)


def _check_keys(file: Path, keys: Sequence[str]) -> None:
    """Raise a ValueError for a missing array, or lengths that differ in the test split."""
    for which in ("test", "train", "val"):
        found = [part for part in PARTS if f"{which}_inputs_{part}" in keys]
        wanted = which == "test" or found
        lacking = [f"{which}_inputs_{part}" for part in PARTS if part not in found]
        lacking += [f"{which}_labels"] if which != "test" and f"{which}_labels" not in keys else []
        if wanted and lacking:
            raise ValueError(
                f"{file} lacks {' and '.join(lacking)}: pairs are test_inputs_a, test_inputs_b, "
                "test_labels and, to train on, train_inputs_a, train_inputs_b and train_labels"
            )


def _read(
    file: Path, which: str, part: str, keys: Sequence[str]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """One side of a split, after its length was compared with that of the other side."""
    arrays, labels = npz_split(file, which, f"inputs_{part}", keys)
    other = PARTS[1 - PARTS.index(part)]
    count = archive.length(file, f"{which}_inputs_{other}")
    if len(arrays) != count:
        raise ValueError(
            f"{file}: {which}_inputs_{part} has {len(arrays)} rows, but {which}_inputs_{other} "
            f"{count}: row i of both is one pair"
        )
    return arrays, labels


def _kind(file: Path, key: str, given: str | None) -> str:
    """The modality of an array; a ValueError says which there are."""
    arrays = archive.read_arrays(file, key)
    kinds = {("u", 3): "image", ("u", 4): "image", ("i", 2): "signal", ("i", 3): "signal"}
    kinds |= {("f", 3): "signal", ("f", 2): "vector"}
    known = ("image", "signal", "vector")
    if given is not None and given not in known:
        raise ValueError(f"data.dataset.kinds names {given!r}: {KINDS}")
    kind = given or kinds.get((arrays.dtype.kind, arrays.ndim))
    if kind is None:
        raise ValueError(
            f"{file}: {key} is {arrays.dtype} of shape {arrays.shape}, which is neither images, "
            f"signals nor vectors: {KINDS}"
        )
    return kind


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
