"""Signals of two tones: made on the fly, so that signals can be tried without a download."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from core.runtime import Runtime
from data.dataset import Dataset

Arrays = tuple[NDArray[np.int16], NDArray[np.int64]]

KEYS = ((697, 770, 852, 941), (1209, 1336, 1477))  # Hz: rows and columns of a telephone
NAMES = [f"{low}+{high}" for low in KEYS[0] for high in KEYS[1]][:10]
SEEDS = {"train": 0, "test": 1}


def two_tones(
    runtime: Runtime,
    length: int = 512,
    rate: int = 8000,
    noise: float = 0.3,
    count: int = 2000,
    size: int | None = None,
    val_fraction: float = 0.0,
) -> Dataset:
    """Two tones of a telephone's keys with noise, 10 classes: [1, length] at ``rate``.

    Loudness, phases and the beginning are random. The signals are the same ones in every run.

    Args:
        runtime: of the run.
        length: samples of a signal.
        rate: samples in a second, at least 3,000, or the tones could not be told apart.
        noise: standard deviation of white noise, where the tones have an amplitude up to 0.5 each.
        count: training signals; there is a quarter as many for testing.
        size: samples to which they are padded.

    Raises:
        ValueError: for settings out of range.
    """
    if length < 16 or rate < 3000 or noise < 0 or count < 40:
        raise ValueError(
            "two_tones has a length of at least 16, a rate of at least 3000, noise of at least 0 "
            f"and a count of at least 40, not {length}, {rate}, {noise} and {count}"
        )
    counts = {"train": count, "test": count // 4}
    readers = {
        which: functools.partial(_signals, SEEDS[which], counts[which], length, rate, noise)
        for which in counts
    }
    return Dataset(
        "two_tones",
        readers,
        NAMES,
        runtime,
        size=size,
        val_fraction=val_fraction,
        modality="signal",
        rate=rate,
    )


def _signals(seed: int, count: int, length: int, rate: int, noise: float) -> Arrays:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    time = np.arange(length) / rate
    pairs = np.array([[float(f) for f in name.split("+")] for name in NAMES])[labels]
    phase = rng.uniform(0, 2 * np.pi, (count, 2, 1))
    loud = rng.uniform(0.2, 0.5, (count, 2, 1))
    tones = (loud * np.sin(2 * np.pi * pairs[:, :, None] * time + phase)).sum(axis=1)
    begins = rng.integers(0, length // 4, (count, 1))
    x = np.where(np.arange(length) < begins, 0, tones) + noise * rng.normal(size=tones.shape)
    return (x.clip(-1, 1) * 32767).round().astype(np.int16), labels
