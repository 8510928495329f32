"""docs/new-modality.md, to the letter: its files make volumes a modality, without data too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.io import decode_image

from core.runtime import Runtime
from data.modality import MODALITIES
from engine.config import compose
from engine.train import run
from tests.user_parts import forgotten, written_parts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "new-modality.md"
SHORT = ["device=cpu", "steps=6", "batch_size=16", "evaluations=1", "checkpoints=1"]
SHORT += ["data.training.steps=60", "data.dataset.count=200", "synthesizer.size=16"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written_parts(tmp_path / "parts", PAGE)


@pytest.mark.parametrize("method", ["dfq", "fast_dfkd", "reverie"])
def test_the_page_makes_a_modality(folder: Path, tmp_path: Path, method: str) -> None:
    words = [f"config_path={folder}", "data=voxels", f"method={method}", *SHORT]
    words += ["~generator.output"] if method == "reverie" else []
    with forgotten(folder):
        try:
            run(compose([*words, f"run_root={tmp_path / 'runs'}"]), Runtime("cpu"))
        finally:
            MODALITIES.pop("voxels", None)
    [path] = (tmp_path / "runs").glob(f"voxels-{method}-*/")
    result = json.loads((path / "result.json").read_text())
    assert result["data"] == "voxels"
    assert result["teacher"]["accuracy"] > 0.6  # of four classes
    assert result["cost"]["real_training_inputs_read"] == 0
    assert result["cost"]["images_synthesized"] > 0
    picture = decode_image(str(path / "inputs.png"))
    assert picture.shape[1] >= 150
    assert picture.float().std() > 1
    assert torch.equal(picture[0], picture[2])


def test_the_page_makes_a_paired_data_set(folder: Path, tmp_path: Path) -> None:
    words = [f"config_path={folder}", "data=shadows", "method=crd_crossmodal", *SHORT[:-1]]
    words += ["source.labels=40", f"run_root={tmp_path / 'runs'}"]
    with forgotten(folder):
        try:
            run(compose(words), Runtime("cpu"))
        finally:
            MODALITIES.pop("voxels", None)
    [path] = (tmp_path / "runs").glob("shadows-crd_crossmodal-*/")
    result = json.loads((path / "result.json").read_text())
    assert result["teacher"]["accuracy"] > 0.6
    assert decode_image(str(path / "inputs.png")).float().std() > 1


def test_its_length_is_what_it_says() -> None:
    """About a hundred lines of Python, and a file each for data, model and generator."""
    text = PAGE.read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert 80 <= len(code.splitlines()) <= 120
    assert text.count("```yaml\n") == 3 + 1  # and one for the pairs
