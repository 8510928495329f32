"""scikit-learn's embedded tables: vectors without a download."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.runtime import Runtime
from data.dataset import Dataset

Arrays = tuple[NDArray[Any], NDArray[Any]]

TABLES = {"breast_cancer": "load_breast_cancer", "wine": "load_wine", "digits": "load_digits"}
TEST_FRACTION = 0.25


def table(
    name: str,
    runtime: Runtime,
    split: int = 0,
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """A table of scikit-learn.

    "breast_cancer" has 569 rows of 30 columns and 2 classes, "wine" 178 of 13 and 3, and "digits"
    1,797 of 64, the pixels of a handwritten digit, and 10. A quarter of every class are test rows.
    Each column is scaled so that the training split lies in 0..1, and test values beyond that count
    as its ends. The scale is taken as a property of the data set, as 0..255 is of images, and is
    the same for every run with this ``split``.

    Args:
        split: the number of the random split, for results over several.
        size: vectors have none; anything but None is refused.

    Raises:
        ValueError: for another name.
    """
    if name not in TABLES:
        raise ValueError(f"there is no table {name!r}: choose one of {', '.join(TABLES)}")
    from sklearn import datasets  # slow to import

    classes = [str(c) for c in getattr(datasets, TABLES[name])().target_names]
    readers = {which: functools.partial(_rows, name, split, which) for which in ("train", "test")}
    given: dict[str, Any] = {"size": size, "val_fraction": val_fraction, "mean": mean, "std": std}
    return Dataset(name, readers, classes, runtime, modality="vector", **given)


def _rows(name: str, split: int, which: str) -> Arrays:
    from sklearn import datasets

    found = getattr(datasets, TABLES[name])()
    labels = found.target.astype(np.int64)
    test = held_out(labels, TEST_FRACTION, split)
    low, high = found.data[~test].min(axis=0), found.data[~test].max(axis=0)
    chosen = test if which == "test" else ~test
    return scaled(found.data[chosen], low, high), labels[chosen]


def held_out(labels: NDArray[np.integer], fraction: float, split: int) -> NDArray[np.bool_]:
    """Which rows are for testing: of each class the same fraction, at random by ``split``."""
    generator = np.random.default_rng(split)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        test[rows[: round(fraction * len(rows))]] = True
    return test


def scaled(
    values: NDArray[np.floating], low: NDArray[np.floating], high: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Columns [N, D] with ``low`` at 0 and ``high`` at 1; what lies beyond counts as these."""
    inside = (values - low) / np.where(high > low, high - low, 1)
    return inside.clip(0, 1).astype(np.float32)
