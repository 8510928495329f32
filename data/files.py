"""A user's own data: an .npz file in MedMNIST's key layout, or a folder of images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.memory import check_memory
from core.runtime import Runtime
from data import archive
from data.checks import check_labels
from data.dataset import Dataset
from data.folders import class_files, class_folders, pictures_in, split_folders, unlabelled
from data.images import fit
from data.modality import MODALITIES, modality_named
from data.notes import note
from data.pictures import read_picture
from data.spec import Expected
from data.texts import check_words

Arrays = tuple[NDArray[Any], NDArray[Any] | None]

GROUPS = {"image": "npz", "signal": "npz_signals", "vector": "npz_vectors", "text": "npz_texts"}


def npz(
    path: str | Path | None,
    runtime: Runtime,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    expected: Callable[[], Expected] | None = None,
    modality: str = "image",
    rate: float | None = None,
) -> Dataset:
    """A file with ``train_images, train_labels, test_images, test_labels`` (and ``val_*``).

    Images are uint8 [N, H, W] or [N, H, W, C], labels integers [N] or [N, 1]. Of another modality,
    the inputs have its name: ``train_signals``, int16 or floats in -1..1, [N, L] or [N, C, L];
    ``train_vectors``, numbers in 0..1, [N, D], of which ``groups``, [start, end) [G, 2], are the
    columns of one category each; ``train_texts``, numbers of words [N, L], which an array ``words``
    lists. A data-free run needs ``test_images`` alone; without ``test_labels`` it
    has no accuracy. Splits that are not opened are not read, and nothing is ever unpickled.

    Args:
        classes: names in label order; None takes the file's ``classes``, or else numbers up to
            the largest label of the test split, which then has to have every label below it, or
            else the teacher's.
        expected: by a teacher; gives the classes where neither file nor user names them.
        modality: the name of the inputs'.
        rate: samples in a second, of signals; None takes the file's ``rate``, if it has one.

    Raises:
        ValueError: for a file that is missing, is not .npz or lacks keys, or if the number of
            classes is uncertain; when a split is opened, for arrays that are not as above.
    """
    file = existing(path)
    keys = archive.keys(file)
    many = modality_named(modality).plural
    _check_modality(file, keys, modality)
    classes = classes_in(file, keys, classes, expected)
    if rate is None and "rate" in keys:
        rate = rate_in(file)
    splits = [which for which in ("train", "val", "test") if f"{which}_{many}" in keys]
    readers = {which: functools.partial(npz_split, file, which, many, keys) for which in splits}
    groups = _groups(file) if modality == "vector" and "groups" in keys else []
    given = (size, val_fraction, mean, std, None, modality, rate, _words(file, modality), groups)
    return Dataset(str(file), readers, classes, runtime, *given)


def classes_in(
    file: Path,
    keys: Sequence[str],
    classes: Sequence[str] | None,
    expected: Callable[[], Expected] | None,
) -> Sequence[str]:
    """The class names that the user, the file, its test labels or the teacher give; see `npz`.

    Raises:
        ValueError: for test labels that are none, and if the number of classes is uncertain.
    """
    labels = None
    if "test_labels" in keys:
        labels = check_labels(f"{file}: test_labels", archive.read_arrays(file, "test_labels"))
    if classes is not None:
        return classes
    if "classes" in keys:
        return _names(file, "classes")
    return _of_teacher(str(file), expected) if labels is None else _numbers(file, labels)


def _check_modality(file: Path, keys: Sequence[str], modality: str) -> None:
    """Raise a ValueError for a file without test inputs of this modality."""
    many = modality_named(modality).plural
    if f"test_{many}" in keys:
        return
    others = [known for known in MODALITIES.values() if f"test_{known.plural}" in keys]
    if others:
        raise ValueError(
            f"{file} has test_{others[0].plural}, but data.dataset.modality={modality}: choose "
            f"data={GROUPS.get(others[0].name, 'one of that modality')}"
        )
    raise ValueError(
        f"{file} lacks test_{many}: an npz data set has test_{many}, test_labels, and, to train "
        f"on, train_{many} and train_labels"
    )


def npz_split(file: Path, which: str, many: str, keys: Sequence[str]) -> Arrays:
    """The inputs ``{which}_{many}`` of a file, and their labels if it has any."""
    labelled = f"{which}_labels" in keys
    labels = archive.read_arrays(file, f"{which}_labels") if labelled else None
    return archive.read_arrays(file, f"{which}_{many}"), labels


def rate_in(file: Path) -> float:
    """The sample rate that a file says."""
    rate = archive.read_arrays(file, "rate")
    if rate.size != 1 or rate.dtype.kind not in "iuf" or not rate.item() > 0:
        raise ValueError(f"{file}: rate is one number, of samples in a second, not {rate!r:.60}")
    return float(rate.item())


def _of_teacher(data: str, expected: Callable[[], Expected] | None) -> tuple[str, ...]:
    """The classes of data without labels."""
    if expected is None or not (classes := expected().classes):
        raise ValueError(
            f"{data} has neither labels nor names of classes, and the teacher's file does not "
            "name them: give teacher.classes=NUMBER or teacher.classes=[NAME,...]"
        )
    return classes


def _numbers(file: Path, labels: NDArray[np.integer]) -> list[str]:
    """As many classes as the test split's labels show; no training label is read."""
    present = np.unique(labels)
    if int(present[-1]) != len(present) - 1:  # a class without test images, or a stray label
        raise ValueError(
            f"{file}: test_labels go up to {present[-1]}, but only {len(present)} labels occur, so "
            "the number of classes is uncertain: name them all, by data.dataset.classes=[...] "
            "or in an array of names called classes in the file"
        )
    return [str(i) for i in range(len(present))]


def _names(file: Path, key: str) -> list[str]:
    """The class names or the words of a file."""
    names = archive.read_arrays(file, key)
    if names.ndim != 1 or names.dtype.kind != "U":
        order = "class names in label order" if key == "classes" else "words by their numbers"
        raise ValueError(
            f"{file}: {key} is {names.dtype} of shape {names.shape}; "
            f"a list of strings, the {order}, is expected"
        )
    return [str(name) for name in names]


def _groups(file: Path) -> list[list[int]]:
    """Which columns are one category, as a file of vectors says."""
    groups = archive.read_arrays(file, "groups")
    if groups.dtype.kind not in "iu" or groups.ndim != 2 or groups.shape[1] != 2:
        raise ValueError(
            f"{file}: groups has shape {groups.shape}; [G, 2], the first column of each category "
            "and the one after its last, is expected"
        )
    return groups.tolist()  # type: ignore[no-any-return]


def _words(file: Path, modality: str) -> list[str]:
    """The vocabulary in a file of texts; no other file has one."""
    if modality != "text":
        return []
    check_words(words := _names(file, "words"))
    return words


def existing(path: str | Path | None) -> Path:
    """The path of a user's own data.

    Raises:
        ValueError: without one, and if nothing is there.
    """
    if not path:
        raise ValueError("this data set needs a path: set data.path=...")
    try:
        Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: of a null byte
        reason = getattr(error, "strerror", None) or str(error)
        absent = "does not exist" if isinstance(error, FileNotFoundError) else f"fails: {reason}"
        raise ValueError(f"data.path={path} {absent}") from error
    return Path(path)


def image_folder(
    path: str | Path | None,
    runtime: Runtime,
    size: int | None = 32,
    channels: int = 3,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    expected: Callable[[], Expected] | None = None,
) -> Dataset:
    """Folders ``train`` and ``test`` (or ``val`` in its place) with one folder of images per class.

    A data-free run needs ``test`` alone; images directly in it, or in ``path`` itself, have no
    labels, and there is no accuracy then. Names that begin with a dot are ignored. Other files that
    are not images are left out, and a printed line says so. All images of a split are held in
    memory, at their final size. Class names that differ in Unicode form only are the same.

    Args:
        size: height and width to bring every image to; None needs images of one size.
        channels: 1 for grey, 3 for colour.
        expected: by a teacher; gives the classes where there are no class folders.

    Raises:
        ValueError: for missing folders; when a split is opened, for images that cannot be read or
            that :func:`data.pictures.read_picture` refuses, and for a class without any.
    """
    if channels not in (1, 3):
        raise ValueError(f"data.dataset.channels must be 1 (grey) or 3 (colour), but is {channels}")
    root = existing(path)
    folders = split_folders(root)
    names = list(class_folders(folders["test"]))
    _check_layout(root, folders["test"], names)
    classes = names or _of_teacher(str(root), expected)
    read = functools.partial(_folder_split, test=folders["test"], size=size, channels=channels)
    readers = {
        which: functools.partial(read, folder, names, runtime=runtime)
        for which, folder in folders.items()
    }
    return Dataset(str(root), readers, classes, runtime, size, val_fraction, mean, std)


def _check_layout(root: Path, test: Path, names: Sequence[str]) -> None:
    if not names and not pictures_in(test):
        raise ValueError(
            f"{root} needs a folder test (or val), and train to train on, with one folder of "
            "images per class; or images without labels, directly in it"
        )
    if names and test == root:
        raise ValueError(
            f"{root} needs the folder test (or val), with one folder per class: move "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} there"
        )


def _folder_split(
    folder: Path,
    classes: Sequence[str],
    test: Path,
    size: int | None,
    channels: int,
    runtime: Runtime,
) -> Arrays:
    if classes:
        files, left_out = class_files(folder, classes, str(test))
    else:
        files, left_out = unlabelled(folder)
    if left_out:
        note(runtime, f"data {folder}: {left_out}")
    images = None
    for i, (file, _) in enumerate(files):
        picture = read_picture(file, channels)
        if images is None:
            sides = picture.shape[:2] if size is None else (size, size)
            needed = len(files) * channels * sides[0] * sides[1]
            check_memory(needed, f"the {len(files)} images of {folder}", "set a smaller data.size")
            images = np.empty((len(files), channels, *sides), np.uint8)
        if size is None and picture.shape[:2] != images.shape[2:]:
            raise ValueError(
                f"{folder} has images of different sizes: set data.size=... "
                f"({file} is {_sides(picture)}, {files[0][0]} is not)"
            )
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
        images[i] = fit(x, size)[0].numpy()
    assert images is not None  # every class has one
    labels = np.array([label for _, label in files], dtype=np.int64) if classes else None
    return images.transpose(0, 2, 3, 1), labels


def _sides(picture: NDArray[np.uint8]) -> str:
    return f"{picture.shape[0]}x{picture.shape[1]}"
