"""Data sets by name: scikit-learn's embedded digits, and those that torchvision downloads."""

from __future__ import annotations

import contextlib
import fcntl
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.runtime import Runtime
from data.dataset import Dataset

Arrays = tuple[NDArray[np.uint8], NDArray[np.integer]]

# Mean and standard deviation of each channel of the training split, by data set and size.
MOMENTS: dict[tuple[str, int | None], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("digits", None): ((0.3055,), (0.3759,)),
    ("MNIST", 32): ((0.1001,), (0.2752,)),
    ("FashionMNIST", 32): ((0.219,), (0.3318,)),
    ("KMNIST", 32): ((0.1468,), (0.3154,)),
    ("SVHN", 32): ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    ("CIFAR10", 32): ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ("CIFAR100", 32): ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

DIGITS_TEST_PER_CLASS = 36  # 360 of 1797, the same share of every class
DIGITS_SPLIT_SEED = 0


def digits(
    runtime: Runtime,
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """scikit-learn's handwritten digits: 1,797 real images, 1 x 8 x 8, inside the wheel.

    The split is fixed: 36 test images of each class (360) and 1,437 training images.
    """
    readers = {which: functools.partial(_digits, which) for which in ("train", "test")}
    names = [str(i) for i in range(10)]
    moments = _moments("digits", size, mean, std)
    return Dataset("digits", readers, names, runtime, size, val_fraction, *moments)


def _digits(which: str) -> Arrays:
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # ink is counted from 0 to 16
    generator = np.random.default_rng(DIGITS_SPLIT_SEED)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        rows = generator.permutation(np.flatnonzero(labels == label))
        test[rows[:DIGITS_TEST_PER_CLASS]] = True
    chosen = test if which == "test" else ~test
    return images[chosen], labels[chosen]


def torchvision_dataset(
    name: str,
    root: str | Path,
    classes: int | Sequence[str],
    runtime: Runtime,
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """A data set that torchvision reads, downloaded under ``root`` if it is not there.

    Args:
        name: the class in ``torchvision.datasets``: MNIST, FashionMNIST, KMNIST, SVHN, CIFAR10
            or CIFAR100.
        classes: names in label order, or how many.
        root: the folder that holds one folder or file per data set, in torchvision's layout.
    """
    readers = {
        which: functools.partial(_torchvision, name, Path(root), which)
        for which in ("train", "test")
    }
    moments = _moments(name, size, mean, std)
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else classes
    return Dataset(name, readers, names, runtime, size, val_fraction, *moments)


def _moments(
    name: str, size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """The given moments, or those known at this size, since padding and resizing change them."""
    unknown = mean is None and std is None
    return MOMENTS.get((name, size), (None, None)) if unknown else (mean, std)


def _torchvision(name: str, root: Path, which: str) -> Arrays:
    from torchvision import datasets

    cls = getattr(datasets, name)
    options = {"split": which} if name == "SVHN" else {"train": which == "train"}
    try:
        dataset = _open_or_download(cls, root, options)
    except _DownloadError as error:
        raise ValueError(
            f"cannot download {name} to data.root={root} ({error}): place its files there "
            "(data.root=...), or use your own file with data=npz data.path=..."
        ) from error
    except Exception as error:  # a damaged file shows as almost any exception, asserts included
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"cannot read the {which} split of {name} under data.root={root} ({reason}): "
            "delete its files there to have them downloaded"
        ) from error
    images = np.asarray(dataset.data)
    if name == "SVHN":
        images = images.transpose(0, 2, 3, 1)
    labels = dataset.labels if name == "SVHN" else dataset.targets
    return images, np.asarray(labels, dtype=np.int64)


class _DownloadError(Exception):
    """Anything that went wrong while files were fetched."""


def _open_or_download(cls: Any, root: Path, options: dict[str, Any]) -> Any:
    try:
        return cls(root, **options, download=False)
    except RuntimeError as error:
        if "not found" not in str(error):  # torchvision's words for files that are absent
            raise
    try:
        with _one_at_a_time(root):
            return cls(root, **options, download=True)
    except Exception as error:
        raise _DownloadError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Ranks and runs that miss the same files must not write them at once."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".download.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the file is closed
        yield
