"""docs/own-data.md, to the letter: its script pairs files, and its YAML pairs two data sets."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

import train
from tests.user_parts import forgotten

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-data.md").read_text()
SHORT = ["device=cpu", "steps=4", "batch_size=8", "evaluations=1", "data.training.steps=8"]
SHORT += ["teacher.model.depth=8", "student.model.width=4", "run_root=runs"]


def block(begins: str) -> str:
    """The indented block that begins so."""
    [found] = re.findall(rf"(?m)^    {re.escape(begins)}(?:.*\n|\n)(?:    .*\n|\n)*", PAGE)
    return textwrap.dedent(found)


def write_files(names: tuple[str, str], length: int) -> None:
    """Pictures under one name and sounds under the other, a folder for each class."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            for name in names:
                Path(name, split, label).mkdir(parents=True, exist_ok=True)
            for i in range(12):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(names[0], split, label, f"{i}.png"))
                wave = draw.integers(-9999, 9999, length).astype(np.int16)
                wavfile.write(Path(names[1], split, label, f"{i}.wav"), 8000, wave)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_files_are_paired_by_their_names() -> None:
    write_files(("pairs", "pairs"), 1024)
    exec(compile(block("from pathlib import Path"), "own-data.md", "exec"), {})
    words = block("python train.py data=npz_pairs").split()[2:]
    assert train.main([*words, *SHORT]) == 0
    with np.load("pairs.npz") as file:
        assert file["train_inputs_b"].shape == (24, 1024)
        assert file["classes"].tolist() == ["cat", "dog"]


def test_two_data_sets_are_paired_by_class() -> None:
    write_files(("photos", "sounds"), 1024)
    parts = Path("parts").resolve()
    (parts / "data").mkdir(parents=True)
    (parts / "data" / "photos_and_sounds.yaml").write_text(block("defaults:"))
    words = block("python train.py config_path=parts").split()[2:]
    with forgotten(parts):
        assert train.main([*words, *SHORT]) == 0
