"""A user's own recordings: wave files in one folder per class, as signals."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.memory import check_memory
from core.runtime import Runtime
from data.dataset import Dataset
from data.files import existing
from data.folders import class_files, class_folders, split_folders
from data.notes import note
from data.waves import check_sound, clipped, fitted, one_channel, read_wave, say_clipped, say_cut

Arrays = tuple[NDArray[np.int16], NDArray[np.int64]]
EXTENSIONS = (".wav",)
LEAST = 16  # samples of a signal


def audio_folder(
    path: str | Path | None,
    runtime: Runtime,
    length: int = 8192,
    rate: int | None = None,
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Folders ``train`` and ``test`` (or ``val`` in its place) with one folder of .wav per class.

    Signals are [1, length]: shorter recordings are padded with silence on both sides, and of longer
    ones the middle is kept. Samples of 8, 16, 24 or 32 bits, or floats in -1..1, become 16 bits;
    several channels are averaged. A data-free run needs ``test`` alone. Names that begin with a dot
    are ignored, other files that are not .wav are left out, and a printed line says so, as it does
    of recordings that are clipped, with more than 1 % of their samples at the largest value, and of
    files that end before their header says so.

    Args:
        length: samples of a signal.
        rate: samples in a second, of every file; None takes that of the first one.
        size: samples to which signals are padded.

    Raises:
        ValueError: for a length out of range and missing folders; when a split is opened, for a
            class without recordings, and for one that cannot be read, has another rate, or is empty
            or silent, which is named.
    """
    if length < LEAST:
        raise ValueError(f"length is a number of samples, at least {LEAST}, but is {length}")
    root = existing(path)
    folders = split_folders(root)
    classes = list(class_folders(folders["test"]))
    if folders["test"] == root or not classes:
        raise ValueError(
            f"{root} needs a folder test (or val), and train to train on, with one folder of .wav "
            "files per class"
        )
    if rate is None:
        files, _ = class_files(folders["test"], classes, "", "recording", EXTENSIONS)
        rate = read_wave(files[0][0])[0]
    read = functools.partial(
        _read, test=folders["test"], classes=classes, length=length, rate=rate, runtime=runtime
    )
    readers = {which: functools.partial(read, folder) for which, folder in folders.items()}
    given: dict[str, Any] = {"size": size, "val_fraction": val_fraction, "mean": mean, "std": std}
    return Dataset(str(root), readers, classes, runtime, modality="signal", rate=rate, **given)


def _read(
    folder: Path, test: Path, classes: Sequence[str], length: int, rate: int, runtime: Runtime
) -> Arrays:
    files, left_out = class_files(folder, classes, str(test), "recording", EXTENSIONS)
    if left_out:
        note(runtime, f"data {folder}: {left_out}")
    what = f"the {len(files)} recordings of {folder}"
    check_memory(2 * len(files) * length, what, "set a smaller data.dataset.length")
    signals = np.empty((len(files), length), np.int16)
    loud, short = [], []
    for i, (file, _) in enumerate(files):
        found, wave, cut = read_wave(file)
        if found != rate:
            raise ValueError(
                f"{file} has {found} samples in a second, but {rate} are expected, by "
                "data.dataset.rate or the first file: resample it"
            )
        check_sound(str(file), wave)
        loud += [file.name] if clipped(wave) else []
        short += [file.name] if cut else []
        signals[i] = fitted(one_channel(str(file), wave), length)
    say_clipped(str(folder), loud, len(files), runtime)
    say_cut(str(folder), short, len(files), runtime)
    return signals, np.array([label for _, label in files], dtype=np.int64)
