"""Spoken digits: the Free Spoken Digit Dataset as signals."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.runtime import Runtime
from data import archive
from data.dataset import Dataset
from data.modality import decode
from data.signals import Signal
from data.spec import InputSpec
from data.spectrograms import LogMel
from data.waves import check_sound, clipped, fitted, read_wave, say_clipped, say_cut

Arrays = tuple[NDArray[Any], NDArray[np.int64]]
Reader = Callable[[], Arrays]
Task = Literal["digit", "digit_and_speaker"]
Test = Literal["index", "speaker"]

RATE = 8000
CHUNK = 512  # signals whose spectrograms are computed at a time
OWN_TEST = 5  # recordings of each digit and speaker below this index are the set's own test split
NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")
KEYS = ("waveforms", "offsets", "labels", "speakers", "speaker_names", "index")
WHERE = "the folder recordings/ of github.com/Jakobovski/free-spoken-digit-dataset, or its npz form"


@dataclass
class Recordings:
    """All recordings: each its samples, digit, speaker and index."""

    waveforms: list[NDArray[np.int16]]
    digits: NDArray[np.int64]
    speakers: NDArray[np.int64]
    names: tuple[str, ...]
    index: NDArray[np.int64]


def fsdd(
    path: str | Path | None,
    runtime: Runtime,
    length: int = 4096,
    task: Task = "digit",
    test: Test = "index",
    test_speakers: Sequence[str] = ("theo",),
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Spoken digits, [1, length] at 8 kHz: 3,000 recordings of six speakers.

    Recordings that are shorter are padded with silence on both sides, and of longer ones the middle
    is kept: at 4,096 samples, about half a second, that concerns one in four.

    Args:
        path: a folder of files DIGIT_SPEAKER_INDEX.wav, as the data set is published, or an npz
            file with ``waveforms`` int16 [sum of lengths], ``offsets`` [N + 1], ``labels``,
            ``speakers`` and ``index`` [N], and ``speaker_names``.
        length: samples of a signal.
        task: what is told apart: the 10 digits, or the 60 pairs of digit and speaker.
        test: which recordings are for testing: the data set's own split, those whose index is below
            5, or all of ``test_speakers``, whom training does not hear.
        size: samples to which signals are padded.

    Raises:
        ValueError: for settings out of range, and a path that is not as above; when a split is
            opened, for a recording of another kind, which is named.
    """
    readers, names = _readers(path, runtime, length, task, test, test_speakers)
    given: dict[str, Any] = {"size": size, "val_fraction": val_fraction, "mean": mean, "std": std}
    return Dataset("fsdd", readers, names, runtime, modality="signal", rate=RATE, **given)


def fsdd_logmel(
    path: str | Path | None,
    runtime: Runtime,
    length: int = 4096,
    mels: int = 16,
    window: int = 512,
    hop: int = 256,
    task: Task = "digit",
    test: Test = "index",
    test_speakers: Sequence[str] = ("theo",),
    size: int | None = None,
    val_fraction: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Spoken digits as log-mel spectrograms: images [1, mels, length / hop] in 8 bits.

    They are computed once, on the run's device, when a split is opened; see
    :class:`data.spectrograms.LogMel` for the values and for ``mels``, ``window`` and ``hop``, and
    :func:`fsdd` for the others.

    Raises:
        ValueError: as these two.
    """
    readers, names = _readers(path, runtime, length, task, test, test_speakers)
    logmel = LogMel(InputSpec((1, length), (-1.0, 1.0), rate=RATE), mels, window, hop)

    def pictures(read: Reader) -> Arrays:
        waves, labels = read()
        return _pictures(logmel.to(runtime.device), waves, runtime), labels

    given: dict[str, Any] = {"size": size, "val_fraction": val_fraction, "mean": mean, "std": std}
    seen = {which: functools.partial(pictures, read) for which, read in readers.items()}
    return Dataset("fsdd_logmel", seen, names, runtime, **given)


def _pictures(logmel: LogMel, waves: NDArray[np.int16], runtime: Runtime) -> NDArray[np.uint8]:
    """The spectrograms [N, mels, frames] of signals [N, length]."""
    signals = torch.from_numpy(waves)[:, None].split(CHUNK)
    with torch.no_grad():
        parts = [logmel(_decoded(part.to(runtime.device)))[:, 0] for part in signals]
    return (torch.cat(parts) * 255).round().to(torch.uint8).cpu().numpy()


def _decoded(stored: Tensor) -> Tensor:
    return decode(stored, Signal.natural, Signal.natural)


def _readers(
    path: str | Path | None,
    runtime: Runtime,
    length: int,
    task: Task,
    test: Test,
    test_speakers: Sequence[str],
) -> tuple[dict[str, Reader], list[str]]:
    """What reads the signals [N, length] and labels of each split, and the names of the classes."""
    if length < 16:
        raise ValueError(f"length is a number of samples, at least 16, but is {length}")
    if task == "digit_and_speaker" and test == "speaker":
        raise ValueError("speakers whom training does not hear cannot be classes: use test: index")
    if path is None or not Path(path).exists():
        lost = "" if path is None else f"; {path} does not exist"
        raise ValueError(f"spoken digits need data.path=..., {WHERE}{lost}")
    found = functools.cache(functools.partial(_read, Path(path), runtime))
    names = [str(digit) for digit in range(10)]
    if task == "digit_and_speaker":
        names = [f"{digit} {name}" for digit in names for name in found().names]

    def read(which: str) -> Arrays:
        return _split(found(), which == "test", length, task, test, test_speakers)

    return {which: functools.partial(read, which) for which in ("train", "test")}, names


def _split(
    all_of: Recordings, tested: bool, length: int, task: str, test: str, speakers: Sequence[str]
) -> Arrays:
    speakers = speakers if test == "speaker" else ()
    if unknown := set(speakers) - set(all_of.names):
        raise ValueError(
            f"data.dataset.test_speakers names {', '.join(sorted(unknown))}; there is: "
            f"{', '.join(all_of.names)}"
        )
    if test == "speaker" and not 0 < len(set(speakers)) < len(all_of.names):
        raise ValueError(
            "data.dataset.test_speakers needs one speaker at least, and has to leave one for "
            f"training; there is: {', '.join(all_of.names)}"
        )
    own = all_of.index < OWN_TEST
    away = np.isin(all_of.speakers, [all_of.names.index(name) for name in speakers])
    rows = np.flatnonzero((own if test == "index" else away) == tested)
    labels = all_of.digits
    if task == "digit_and_speaker":
        labels = labels * len(all_of.names) + all_of.speakers
    return np.stack([fitted(all_of.waveforms[i], length) for i in rows]), labels[rows]


def _read(path: Path, runtime: Runtime) -> Recordings:
    found = _folder(path, runtime) if path.is_dir() else _archive(path)
    loud = [str(i) for i, wave in enumerate(found.waveforms) if clipped(wave)]
    say_clipped(str(path), loud, len(found.digits), runtime)
    return found


def _archive(path: Path) -> Recordings:
    if missing := set(KEYS) - set(archive.keys(path)):
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: data.path=... is {WHERE}")
    wave, offsets, digits, speakers, names, index = (archive.read_arrays(path, k) for k in KEYS)
    count = len(digits)
    if wave.dtype != np.int16 or len(offsets) != count + 1 or offsets[-1] > len(wave):
        raise ValueError(f"{path}: waveforms are not int16, or offsets do not fit: {WHERE}")
    if {len(speakers), len(index)} != {count}:
        raise ValueError(
            f"{path} has {count} labels, {len(speakers)} speakers and {len(index)} values of "
            "index: each recording has one of each"
        )
    waves = [wave[a:b] for a, b in itertools.pairwise(offsets)]
    for i, one in enumerate(waves):
        _check(f"recording {i} of {path}", one, RATE)
    columns = (x.astype(np.int64) for x in (digits, speakers, index))
    digits, speakers, index = columns
    return Recordings(waves, digits, speakers, tuple(map(str, names)), index)


def _folder(path: Path, runtime: Runtime) -> Recordings:
    files = {file: NAME.fullmatch(file.name) for file in sorted(path.glob("*.wav"))}
    if not files:
        raise ValueError(f"{path} has no .wav files: data.path=... is {WHERE}")
    waves, rows, short = [], [], []
    for file, match in files.items():
        if match is None:
            raise ValueError(f"{file} is not called DIGIT_SPEAKER_INDEX.wav: rename or remove it")
        rate, wave, cut = read_wave(file)
        _check(str(file), wave, rate)
        waves.append(wave)
        short += [file.name] if cut else []
        rows.append((int(match[1]), match[2], int(match[3])))
    say_cut(str(path), short, len(files), runtime)
    names = tuple(sorted({name for _, name, _ in rows}))
    digits, speakers, index = (
        np.array(column)
        for column in zip(*((d, names.index(n), i) for d, n, i in rows), strict=True)
    )
    return Recordings(waves, digits, speakers, names, index)


def _check(where: str, wave: NDArray[Any], rate: int) -> None:
    """Raise a ValueError for a recording of another kind."""
    if rate != RATE:
        raise ValueError(f"{where} has {rate} samples in a second, not {RATE}: resample it")
    if wave.dtype != np.int16 or wave.ndim != 1:
        raise ValueError(
            f"{where} is {wave.dtype} {list(wave.shape)}: one channel of int16 is expected"
        )
    check_sound(where, wave)
