"""Spoken digits: both forms of the data set, its splits, and recordings that do not belong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from core.runtime import Runtime
from data.spec import InputSpec
from data.spectrograms import LogMel
from data.speech import fsdd, fsdd_logmel

RUNTIME = Runtime("cpu")
NAMES = ("ann", "bob")


def wave(digit: int, name: str, index: int) -> np.ndarray:
    """A recording that can be told from all others, of 20 to 39 samples."""
    start = 1000 * digit + 100 * NAMES.index(name) + index
    return np.arange(start, start + 20 + index, dtype=np.int16)


KEYS = [(d, n, i) for d in range(10) for n in NAMES for i in (0, 4, 5, 19)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "recordings"
    path.mkdir()
    for d, n, i in KEYS:
        wavfile.write(path / f"{d}_{n}_{i}.wav", 8000, wave(d, n, i))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    waves = [wave(*key) for key in KEYS]
    path = tmp_path / "fsdd.npz"
    digits, names, index = zip(*KEYS, strict=True)
    np.savez(
        path,
        waveforms=np.concatenate(waves),
        offsets=np.cumsum([0, *map(len, waves)]),
        labels=np.array(digits, np.uint8),
        speakers=np.array([NAMES.index(n) for n in names], np.uint8),
        speaker_names=np.array(NAMES),
        index=np.array(index, np.uint8),
    )
    return path


@pytest.mark.parametrize("form", ["folder", "file"])
def test_both_forms_hold_the_same(form: str, request: pytest.FixtureRequest) -> None:
    data = fsdd(request.getfixturevalue(form), RUNTIME, length=30)
    assert (data.shape, data.spec.rate, data.num_classes) == ((1, 30), 8000, 10)
    for which, indices in (("train", (5, 19)), ("test", (0, 4))):
        x, labels = data.open(which).stored(slice(0, 99))
        assert labels is not None
        expected = {}
        for d, n, i in KEYS:
            if i in indices:
                one = wave(d, n, i)
                cut = one[(len(one) - 30) // 2 :][:30] if len(one) > 30 else one
                before = (30 - len(cut)) // 2
                row = np.pad(cut, (before, 30 - len(cut) - before))
                expected[row.tobytes()] = d
        found = {
            row.numpy().tobytes(): int(label) for row, label in zip(x[:, 0], labels, strict=True)
        }
        assert found == expected


def test_spectrograms_are_those_of_the_signals(file: Path) -> None:
    data = fsdd_logmel(file, RUNTIME, length=32, mels=4, window=32, hop=8)
    assert (data.shape, data.kind.name) == ((1, 4, 4), "image")
    logmel = LogMel(InputSpec((1, 32), (-1.0, 1.0), rate=8000), 4, 32, 8)
    signals = fsdd(file, RUNTIME, length=32)
    for which in ("train", "test"):
        seen, heard = data.open(which), signals.open(which)
        (x, label), (wave, of_wave) = seen.stored(slice(0, 99)), heard.stored(slice(0, 99))
        expected = logmel(wave / 32768)
        torch.testing.assert_close(x / 255, expected, rtol=0, atol=0.51 / 255)
        assert label.tolist() == of_wave.tolist()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="20 bands"):
        fsdd_logmel(file, RUNTIME, mels=20, window=32, hop=8)


def test_a_speaker_whom_training_does_not_hear(file: Path) -> None:
    data = fsdd(file, RUNTIME, length=40, test="speaker", test_speakers=["bob"])
    x, _ = data.open("train").stored(slice(0, 99))
    assert all(int(row.max()) % 1000 < 100 for row in x)
    assert len(data.open("test")) == len(data.open("train")) == 40
    with pytest.raises(ValueError, match="test_speakers names theo; there is: ann, bob"):
        fsdd(file, RUNTIME, test="speaker").open("test")
    for speakers in ([], ["ann", "bob"]):
        with pytest.raises(ValueError, match="needs one speaker at least, and has to leave one"):
            fsdd(file, RUNTIME, test="speaker", test_speakers=speakers).open("train")


def test_digit_and_speaker(file: Path) -> None:
    data = fsdd(file, RUNTIME, length=40, task="digit_and_speaker")
    assert data.classes[:3] == ("0 ann", "0 bob", "1 ann")
    _, labels = data.open("test").stored(slice(0, 99))
    assert labels is not None
    assert sorted(labels.tolist()) == sorted(list(range(20)) * 2)
    with pytest.raises(ValueError, match="cannot be classes"):
        fsdd(file, RUNTIME, task="digit_and_speaker", test="speaker")


@pytest.mark.parametrize(
    ("name", "rate", "samples", "message"),
    [
        ("1_ann_7.wav", 16000, np.ones(30, np.int16), "16000 samples in a second, not 8000"),
        ("1_ann_7.wav", 8000, np.zeros(30, np.int16), "empty or silent"),
        ("1_ann_7.wav", 8000, np.ones((30, 2), np.int16), "one channel of int16"),
        ("1_ann_7.wav", 8000, np.ones(30, np.float32), "one channel of int16"),
        ("seven.wav", 8000, np.ones(30, np.int16), "not called DIGIT_SPEAKER_INDEX"),
    ],
)
def test_a_recording_that_does_not_belong_is_named(
    folder: Path, name: str, rate: int, samples: Any, message: str
) -> None:
    wavfile.write(folder / name, rate, samples)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        fsdd(folder, RUNTIME).open("test")


def test_what_is_no_data_set(folder: Path, tmp_path: Path) -> None:
    (folder / "1_ann_8.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"1_ann_8\.wav is not a readable wave file"):
        fsdd(folder, RUNTIME).open("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \.wav files"):
        fsdd(tmp_path / "empty", RUNTIME).open("train")
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    with pytest.raises(ValueError, match="lacks index, offsets, speaker_names"):
        fsdd(tmp_path / "other.npz", RUNTIME).open("train")
    with pytest.raises(ValueError, match=r"spoken digits need data\.path"):
        fsdd(None, RUNTIME)
    arrays = {"waveforms": np.arange(8, dtype=np.int16), "offsets": np.array([0, 4, 8])}
    arrays |= {"labels": np.arange(2), "speakers": np.zeros(2, int), "index": np.arange(3)}
    np.savez(tmp_path / "long.npz", **arrays, speaker_names=["ann"])
    with pytest.raises(ValueError, match="has 2 labels, 2 speakers and 3 values of index"):
        fsdd(tmp_path / "long.npz", RUNTIME).open("train")
    with pytest.raises(ValueError, match="at least 16"):
        fsdd(folder, RUNTIME, length=3)


def test_the_data_set_itself(shared: Path) -> None:
    data = fsdd(shared / "data" / "fsdd.npz", RUNTIME)
    assert (len(data.open("train")), len(data.open("test"))) == (2700, 300)
    assert data.spec.std[0] == pytest.approx(0.0557, abs=1e-3)
