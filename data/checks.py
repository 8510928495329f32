"""Checks of a data set: distinct class names, inputs of its modality, labels in range."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from data.categories import Column
    from data.modality import Modality

MOST_CHANNELS = 4
CONVERSIONS = {  # by dtype, or else by its kind
    "bool": "convert it by (images * 255).astype(numpy.uint8)",
    "uint16": "if 65535 is white, convert it by (images / 257).round().astype(numpy.uint8)",
    "f": "if 1 is white, convert it by (images * 255).round().astype(numpy.uint8)",
    "i": "if 255 is white, convert it by images.astype(numpy.uint8)",
    "u": "if 255 is white, convert it by images.astype(numpy.uint8)",
}


def check_settings(
    size: int | None,
    val_fraction: float,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    """Raise a ValueError for settings of a data set that are out of range."""
    if not 0 <= val_fraction < 1:
        raise ValueError(f"data.val_fraction must be in [0, 1), but is {val_fraction}")
    if size is not None and size < 1:
        raise ValueError(f"data.size must be at least 1 (null: the images' own), not {size}")
    if (mean is None) != (std is None):
        raise ValueError(
            "give both data.dataset.mean and data.dataset.std, or neither to have them computed"
        )


def check_classes(name: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Class names in one Unicode form (NFC): file systems and keyboards use different ones.

    Raises:
        ValueError: if there are no names, or one is empty, not text, or there twice.
    """
    if not classes:
        raise ValueError(f"data {name} has no classes: name them all, in label order")
    for i, given in enumerate(classes):
        if not given.strip():
            raise ValueError(f"data {name}: the name of class {i} is empty")
        if any("\ud800" <= c <= "\udfff" for c in given):  # bytes that are not UTF-8
            raise ValueError(f"data {name}: class {i} is called {given!r}, which is not UTF-8 text")
    normal = tuple(unicodedata.normalize("NFC", c) for c in classes)
    if twice := [c for c, count in Counter(normal).items() if count > 1]:
        raise ValueError(
            f"data {name} has more than one class called {', '.join(map(repr, twice[:5]))}: "
            "give each class its own name"
        )
    return normal


def check_images(where: str, images: NDArray[Any]) -> None:
    """Check that images are uint8 [N, H, W] or [N, H, W, C].

    Raises:
        ValueError: saying how to convert them. ``where`` begins the message.
    """
    if images.dtype != np.uint8:
        known = CONVERSIONS.get(images.dtype.name) or CONVERSIONS.get(images.dtype.kind)
        advice = f": {known}" if known else ""
        raise ValueError(f"{where} is {images.dtype}; uint8 (0..255) is expected{advice}")
    if images.ndim == 3 or (images.ndim == 4 and 1 <= images.shape[-1] <= MOST_CHANNELS):
        return
    advice = ""
    if images.ndim == 4 and 1 <= images.shape[1] <= MOST_CHANNELS:
        advice = ". Channels seem to come first: save images.transpose(0, 2, 3, 1)"
    raise ValueError(
        f"{where} has shape {images.shape}; [N, H, W] or [N, H, W, C] with C from 1 to "
        f"{MOST_CHANNELS} is expected{advice}"
    )


def check_labels(where: str, labels: NDArray[Any]) -> NDArray[np.integer]:
    """Labels [N], of [N] or [N, 1].

    Raises:
        ValueError: for anything but integers from 0 on. ``where`` begins the message.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        advice = ""
        if labels.ndim == 2:
            advice = ". If it has one column per class, save labels.argmax(1)"
        elif labels.ndim == 1 and labels.dtype.kind in "bf":
            advice = ": save labels.astype(numpy.int64)"
        raise ValueError(
            f"{where} is {labels.dtype} of shape {labels.shape}; "
            f"integers of shape [N] or [N, 1] are expected{advice}"
        )
    if len(labels) == 0 or labels.min() < 0:
        raise ValueError(f"{where} is empty or has negative labels; 0, 1, ... are expected")
    return labels


def check_split(
    where: str,
    inputs: NDArray[Any],
    labels: NDArray[Any] | None,
    num_classes: int,
    kind: Modality,
) -> NDArray[np.integer] | None:
    """Check a split's inputs and labels as a reader returned them; returns labels as [N] or None.

    Raises:
        ValueError: if inputs or labels are not as expected, or do not belong together.
    """
    name = f"{where}_{kind.plural}"
    kind.check(name, inputs)
    one = kind.name
    if 0 in inputs.shape:
        raise ValueError(f"{name} has shape {inputs.shape}; at least one {one} is expected")
    if labels is None:
        return None
    labels = check_labels(f"{where}_labels", labels)
    if len(inputs) != len(labels):
        raise ValueError(
            f"{name} has shape {inputs.shape} and {where.split()[-1]}_labels "
            f"{labels.shape}; one label for each {one}, and at least one {one}, is expected"
        )
    if labels.max() >= num_classes:
        raise ValueError(
            f"{where}_labels go up to {labels.max()}, but there are {num_classes} classes "
            "(0 is the first): name all of them with data.dataset.classes=[...]"
        )
    return labels


def check_vocabulary(where: str, words: Sequence[str], others: Sequence[str]) -> None:
    """Check that the vocabulary of a data set, ``where``, is that of a teacher, ``others``.

    Raises:
        ValueError: naming the first word that differs.
    """
    pairs = zip_longest(words, others)
    for i, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            has, has_not = ("ends there" if w is None else f"is {w!r}" for w in (ours, theirs))
            raise ValueError(
                f"the vocabulary of {where} is not the teacher's: word {i} {has}, and the "
                f"teacher's {has_not}: choose data or a teacher with the same words"
            )


def check_columns(where: str, columns: Sequence[Column], others: Sequence[Column]) -> None:
    """Check that the columns of a data set, ``where``, are those of a teacher, ``others``, if both
    are known.

    Raises:
        ValueError: naming the first that differs.
    """
    if not (columns and others):
        return
    for ours, theirs in zip_longest(columns, others):
        if ours != theirs:
            named = [c and f"{c.name!r}, {_scale(c)}" for c in (ours, theirs)]
            here, there = ("no further column" if name is None else name for name in named)
            raise ValueError(
                f"data {where} has {here} where the teacher has {there}: the file in "
                "teacher.checkpoint=... decides how a table is read, and other networks need the "
                "same columns"
            )


def _scale(column: Column) -> str:
    if column.categories:
        return f"one of {', '.join(column.categories[:5])}"
    return f"from {column.low:g} to {column.high:g}"


def resized(wanted: Sequence[int], given: Sequence[int]) -> str:
    """What to do about inputs [C, ...] of another size than the wanted one."""
    if wanted[0] != given[0] or len(wanted) != len(given) or len(set(wanted[1:])) != 1:
        return "choose other data"
    size = wanted[-1]
    if len(wanted) > 2:
        return f"set data.size={size}"
    return f"set data.dataset.length={size} (or, without such a key, data.size={size})"
