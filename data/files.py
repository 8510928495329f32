"""A user's own data: an .npz file in MedMNIST's key layout, or a folder of images."""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.dataset import Dataset
from data.images import fit
from engine.runtime import Runtime

Arrays = tuple[NDArray[np.uint8], NDArray[np.integer]]

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def npz(
    path: str | Path | None,
    runtime: Runtime,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """A file with ``train_images, train_labels, test_images, test_labels`` (and ``val_*``).

    Images are uint8 [N, H, W] or [N, H, W, C], labels integers [N] or [N, 1]. Of a split that
    is not opened, no byte is read. Nothing is ever unpickled.

    Args:
        classes: names in label order; None takes the file's ``classes``, or else numbers up to
            the largest label of the test split.

    Raises:
        ValueError: for a file that is missing, is no .npz or lacks keys; when a split is opened,
            for arrays that are not as above.
    """
    file = _existing(path)
    keys = _open(file, lambda archive: list(archive.files))
    missing = [key for key in KEYS if key not in keys]
    if missing:
        raise ValueError(
            f"{file} lacks {', '.join(missing)}: an npz data set has {', '.join(KEYS)}"
        )
    labels = _labels(file, "test_labels")
    if classes is None and "classes" in keys:
        classes = _names(file)
    elif classes is None:
        classes = [str(i) for i in range(int(labels.max()) + 1)]
    splits = [which for which in ("train", "val", "test") if f"{which}_images" in keys]
    readers = {which: functools.partial(_npz_split, file, which, len(classes)) for which in splits}
    return Dataset(file.name, readers, classes, runtime, size, val_fraction, mean, std)


def _npz_split(file: Path, which: str, num_classes: int) -> Arrays:
    images = _array(file, f"{which}_images")
    labels = _labels(file, f"{which}_labels")
    if images.dtype != np.uint8:
        raise ValueError(f"{file}: {which}_images is {images.dtype}; uint8 (0..255) is expected")
    grey, channels = images.ndim == 3, images.shape[-1]
    if not grey and not (images.ndim == 4 and 1 <= channels <= 4):
        raise ValueError(
            f"{file}: {which}_images has shape {images.shape}; "
            "[N, H, W] or [N, H, W, C] with C from 1 to 4 is expected"
        )
    if len(images) != len(labels) or 0 in images.shape:
        raise ValueError(
            f"{file}: {which}_images has shape {images.shape} and {which}_labels {labels.shape}; "
            "one label for each image, and at least one image, is expected"
        )
    if labels.max() >= num_classes:
        raise ValueError(
            f"{file}: {which}_labels go up to {labels.max()}, but there are {num_classes} classes "
            "(0 is the first): name all of them with data.dataset.classes=[...]"
        )
    return images, labels


def _labels(file: Path, key: str) -> NDArray[np.integer]:
    labels = _array(file, key)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"{file}: {key} is {labels.dtype} of shape {labels.shape}; "
            "integers of shape [N] or [N, 1] are expected"
        )
    if len(labels) == 0 or labels.min() < 0:
        raise ValueError(f"{file}: {key} is empty or has negative labels; 0, 1, ... are expected")
    return labels


def _names(file: Path) -> list[str]:
    names = _array(file, "classes")
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(
            f"{file}: classes is {names.dtype} of shape {names.shape}; "
            "a list of strings, the class names in label order, is expected"
        )
    return [str(name) for name in names]


def _existing(path: str | Path | None) -> Path:
    if not path:
        raise ValueError("this data set needs a path: set data.path=...")
    if not Path(path).exists():
        raise ValueError(f"data.path={path} does not exist")
    return Path(path)


def _array(file: Path, key: str) -> NDArray[Any]:
    if key not in _open(file, lambda archive: archive.files):
        raise ValueError(f"{file} lacks {key}")
    return _open(file, lambda archive: archive[key])


def _open(file: Path, take: Any) -> Any:
    """What ``take`` gets from the archive; every way to be unreadable is one kind of error."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return take(archive)
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{file} holds Python objects, which are never unpickled: "
                "save plain uint8 images and integer labels"
            ) from error
        raise ValueError(
            f"{file} is not a readable .npz file: write it with numpy.savez"
        ) from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} is damaged ({error}): copy or download it again") from error


def image_folder(
    path: str | Path | None,
    runtime: Runtime,
    size: int | None = 32,
    channels: int = 3,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Folders ``train`` and ``test`` (or ``val`` in its place) with one folder of images per class.

    Names that begin with a dot are hidden, and neither classes nor images. All images of a split
    are held in memory, at their final size.

    Args:
        size: height and width to bring every image to; None needs images of one size.
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: for missing folders; when a split is opened, for images that cannot be read.
    """
    if channels not in (1, 3):
        raise ValueError(f"data.dataset.channels must be 1 (grey) or 3 (colour), but is {channels}")
    root = _existing(path)
    folders = {which: root / which for which in ("train", "val", "test") if (root / which).is_dir()}
    if "test" not in folders and "val" in folders:
        folders["test"] = folders.pop("val")
    if "train" not in folders or "test" not in folders:
        raise ValueError(f"{root} needs the folders train and test (or val), one folder per class")
    classes = _class_folders(folders["test"])
    readers = {
        which: functools.partial(_folder_split, folder, classes, size, channels)
        for which, folder in folders.items()
    }
    return Dataset(root.name, readers, classes, runtime, size, val_fraction, mean, std)


def _class_folders(folder: Path) -> list[str]:
    return [p.name for p in _visible(folder) if p.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """In order of name; notebooks and file managers leave hidden folders and files behind."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _folder_split(folder: Path, classes: list[str], size: int | None, channels: int) -> Arrays:
    found = _class_folders(folder)
    if found != classes:
        differ = ", ".join(sorted(set(found) ^ set(classes)))
        raise ValueError(f"{folder} and the test folder differ in class folders: {differ}")
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in _visible(folder / name)
        if file.suffix.lower() in EXTENSIONS
    ]
    images = [_image(file, size, channels) for file, _ in files]
    if len({image.shape for image in images}) != 1:
        reason = "has images of different sizes: set data.size=..." if images else "has no images"
        raise ValueError(f"{folder} {reason}")
    return np.stack(images), np.array([label for _, label in files], dtype=np.int64)


def _image(file: Path, size: int | None, channels: int) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            pixels = np.array(opened.convert("RGB" if channels == 3 else "L"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{file} is not a readable image: replace or remove it") from error
    x = torch.from_numpy(pixels).reshape(1, *pixels.shape[:2], channels).permute(0, 3, 1, 2)
    image: NDArray[np.uint8] = fit(x.contiguous(), size)[0].permute(1, 2, 0).numpy()
    return image
