"""A user's own recordings: every kind of wave file is read, and those that do not belong named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from core.runtime import Runtime
from data.audio import audio_folder
from data.waves import clipped

RUNTIME = Runtime("cpu")
WAVE = (1000 * np.sin(np.arange(24))).astype(np.int16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("train/low", "train/high", "test/low", "test/high"):
        (tmp_path / place).mkdir(parents=True)
        wavfile.write(tmp_path / place / "a.wav", 8000, WAVE)
    return tmp_path


def row(folder: Path, wave: Any, length: int = 24, rate: int = 8000) -> list[int]:
    """A recording in the data set, after one that is as it should be."""
    wavfile.write(folder / "test" / "low" / "b.wav", rate, wave)
    data = audio_folder(folder, RUNTIME, length)
    x, labels = data.open("test").stored(slice(0, 9))
    assert (labels is not None, data.classes) == (True, ("high", "low"))
    assert labels.tolist() == [0, 1, 1]  # type: ignore[union-attr]
    return x[2, 0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("wave", "tolerance"),
    [
        (WAVE, 0),
        (WAVE.astype(np.int32) * 65536, 0),
        (WAVE.astype(np.float32) / 32768, 0),
        (WAVE.astype(np.float64) / 32768, 0),
        ((WAVE // 256 + 128).astype(np.uint8), 256),
        (np.stack([WAVE + 500, WAVE - 500], axis=1), 0),
    ],
    ids=["16", "32", "float32", "float64", "8", "stereo"],
)
def test_every_kind_of_sample_becomes_16_bits(folder: Path, wave: Any, tolerance: int) -> None:
    assert np.abs(np.array(row(folder, wave)) - WAVE).max() <= tolerance


def test_recordings_are_padded_and_their_middle_is_kept(folder: Path) -> None:
    short, long = np.arange(1, 17, dtype=np.int16), np.arange(1, 31, dtype=np.int16)
    assert row(folder, short) == [0] * 4 + short.tolist() + [0] * 4
    assert row(folder, long) == long[3:27].tolist()


def test_rate_and_shape_are_known_without_training_data(folder: Path) -> None:
    (folder / "train").rename(folder / "elsewhere")
    data = audio_folder(folder, RUNTIME, 32, mean=[0.5], std=[0.1])
    assert (data.shape, data.spec.rate, data.kind.name) == ((1, 32), 8000, "signal")
    assert not data.has("train")


def test_what_is_clipped_or_left_out_is_said_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "test" / "low" / "notes.txt").touch()
    loud = WAVE.copy()
    loud[3] = 32767
    for _ in range(2):
        row(folder, loud)
    said = capsys.readouterr().out
    assert said.count("1 of 3 recordings are clipped: b.wav\n") == 1
    assert said.count("1 are left out, as they are not recordings in class folders: 1 .txt") == 1


def test_a_file_that_ends_too_early_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And read as far as it goes: streamed files have such headers too."""
    file = folder / "test" / "low" / "a.wav"
    file.write_bytes(file.read_bytes()[:-16])
    data = audio_folder(folder, RUNTIME, 24)
    x, _ = data.open("test").stored(slice(0, 9))
    assert x[1, 0].tolist() == [0] * 4 + WAVE[:16].tolist() + [0] * 4
    said = capsys.readouterr().out
    line = "1 of 2 recordings end before their header says (truncated, or streamed): a.wav\n"
    assert said.count(line) == 1
    data.open("train")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("wave", "loud"),
    [
        (np.array([3, 32767, 5], np.int16), True),
        (np.array([[3, 32767], [1, 2], [3, 4]], np.int16), True),
        (np.array([[3, 32766], [1, 2], [3, 4]], np.int16), False),
        (np.array([128, 255, 100], np.uint8), True),
        (np.array([128, 254, 1], np.uint8), False),
        (np.array([2, 2**31 - 256, 7], np.int32), True),  # the largest value of 24 bits
        (np.array([2, 2**31 - 512, 7], np.int32), False),
        (np.array([0.1, -1.0], np.float32), True),
        (np.array([0.1, -0.99], np.float32), False),
    ],
)
def test_any_channel_of_any_kind_may_be_clipped(wave: Any, loud: bool) -> None:
    assert clipped(wave) is loud


def test_one_sample_in_a_thousand_is_not_clipped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = np.tile(WAVE, 42)
    loud[5] = -32768
    row(folder, loud)
    assert "clipped" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (WAVE, 16000, r"b\.wav has 16000 samples in a second, but 8000 are expected"),
        (WAVE[:0], 8000, r"b\.wav is empty or silent: remove it"),
        (0 * WAVE, 8000, r"b\.wav is empty or silent: remove it"),
        (np.full((9, 2), 7, np.int16), 8000, r"b\.wav is empty or silent: remove it"),
        (WAVE.astype(np.float32), 8000, r"b\.wav has samples that are not in -1\.\.1: scale it"),
        (np.full(9, np.nan, np.float32), 8000, r"b\.wav has samples that are not in -1\.\.1"),
    ],
)
def test_recordings_that_do_not_belong(folder: Path, wave: Any, rate: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        row(folder, wave, rate=rate)
    assert "\n" not in str(error.value)


def test_folders_that_are_none(folder: Path) -> None:
    (folder / "test" / "low" / "b.wav").write_bytes(b"RIFF, or so it says")
    with pytest.raises(ValueError, match=r"b\.wav is not a readable wave file"):
        audio_folder(folder, RUNTIME).open("test")
    (folder / "train" / "low" / "a.wav").rename(folder / "train" / "low" / "a.mp3")
    with pytest.raises(ValueError, match=r"low: no recording of this class is read \(1 \.mp3\)"):
        audio_folder(folder, RUNTIME).open("train")
    (folder / "train" / "other").mkdir()
    with pytest.raises(ValueError, match="differ in class folders: other"):
        audio_folder(folder, RUNTIME).open("train")
    with pytest.raises(ValueError, match="needs a folder test"):
        audio_folder(folder / "train", RUNTIME)
    with pytest.raises(ValueError, match=r"set data\.path"):
        audio_folder(None, RUNTIME)
    with pytest.raises(ValueError, match="at least 16, but is 3"):
        audio_folder(folder, RUNTIME, 3)
