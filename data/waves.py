"""Recordings in wave files: read, checked and brought to one length."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.runtime import Runtime
from data.notes import note

CLIPPED = 0.01  # of the samples at the largest value: more is a note
NAMED = 5  # recordings of many
ENDS = "Reached EOF prematurely"  # begins scipy's warning of a file that is shorter than it says


def read_wave(file: Path) -> tuple[int, NDArray[Any], bool]:
    """Samples in a second, the samples [L] or [L, channels] as they are stored, and whether
    the file is shorter than its header says.

    Raises:
        ValueError: for a file that cannot be read.
    """
    from scipy.io import wavfile  # slow to import

    try:
        with warnings.catch_warnings(record=True) as said:  # others are of chunks without sound
            warnings.simplefilter("always", wavfile.WavFileWarning)
            rate, wave = wavfile.read(file)
    except Exception as error:  # a damaged file shows as almost any exception
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is not a readable wave file ({reason}): copy it again") from error
    return rate, wave, any(ENDS in str(warning.message) for warning in said)


def one_channel(where: str, wave: NDArray[Any]) -> NDArray[np.int16]:
    """Samples [L] or [L, channels] of any type as 16 bits [L], averaged over the channels.

    Raises:
        ValueError: for floats that are not in -1..1.
    """
    if wave.dtype == np.int16 and wave.ndim == 1:
        return wave
    x = wave.astype(np.float64)
    if wave.dtype == np.uint8:  # of which 128 is silence
        x = (x - 128) / 128
    elif wave.dtype.kind == "i":
        x /= -float(np.iinfo(wave.dtype).min)
    elif not (np.abs(x) <= 1).all():
        raise ValueError(f"{where} has samples that are not in -1..1: scale it, or save 16 bits")
    mono = x.mean(axis=1) if x.ndim == 2 else x
    return (mono * 32768).round().clip(-32768, 32767).astype(np.int16)


def check_sound(where: str, wave: NDArray[Any]) -> None:
    """Raise a ValueError for a recording in which nothing is heard."""
    if not len(wave) or (wave == wave[0]).all():
        raise ValueError(f"{where} is empty or silent: remove it")


def clipped(wave: NDArray[Any]) -> bool:
    """Whether more than 1 % of a channel's samples, [L] or [L, channels], are at an end of their
    range."""
    low, high = -1.0, 1.0
    if wave.dtype.kind != "f":
        low, high = np.iinfo(wave.dtype).min, np.iinfo(wave.dtype).max
        high -= 255 if wave.dtype == np.int32 else 0  # 24 bits are read as the upper ones of 32
    return bool(((wave >= high) | (wave <= low)).mean(axis=0).max() > CLIPPED)


def say_clipped(where: str, names: Sequence[str], count: int, runtime: Runtime) -> None:
    """A line on recordings that are :func:`clipped`, if there are any."""
    _say(where, names, count, "are clipped", runtime)


def say_cut(where: str, names: Sequence[str], count: int, runtime: Runtime) -> None:
    """A line on files that end before their header says so, if there are any.

    They are no error: a program that writes to a pipe does not know the length beforehand.
    """
    _say(where, names, count, "end before their header says (truncated, or streamed)", runtime)


def _say(where: str, names: Sequence[str], count: int, what: str, runtime: Runtime) -> None:
    if names:
        some = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        note(runtime, f"data {where}: {len(names)} of {count} recordings {what}: {some}")


def fitted(wave: NDArray[np.int16], length: int) -> NDArray[np.int16]:
    """The middle of a recording, or it in the middle of silence."""
    if len(wave) >= length:
        start = (len(wave) - length) // 2
        return wave[start : start + length]
    before = (length - len(wave)) // 2
    return np.pad(wave, (before, length - len(wave) - before))
