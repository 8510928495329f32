"""A configuration that somebody else wrote names parts of ours, and nothing that runs code."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.build import build
from core.check import MISSING
from engine.choices import ROOT
from engine.trust import read_found

PARTS = [
    "models.digits.DigitsCNN",
    "data.files.npz",
    "generators.losses.OneHot",
    "distillers.base.TransferLoss",
    "torch.optim.SGD",
    "kornia.augmentation.RandomHorizontalFlip",
]
CODE = [
    "os.system",
    "engine.run.os.system",
    "engine.run.shutil.rmtree",
    "engine.run.RunDirectory",
    "engine.train.run",
    "core.build.functools.partial",
    "models.pretrained.load_weights",
    "data.files.np.load",
    "data.files:npz",
    "data.files.npz.__globals__",
    "data.dataset.Dataset.open",
    "torch.load",
    "torch.hub.load",
    "torch.optim.Optimizer.load_state_dict",
    "torch.optim.lr_scheduler.StepLR",
    "kornia.augmentation.os.system",
    "builtins.eval",
    "functools.partial",
    "importlib.import_module",
    "their_module.Part",
    3,
    None,
]


def written(folder: Path, node: Any) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"choices": {}, "data": {"list": [{"deep": node}]}}))
    return file


@pytest.mark.parametrize("name", PARTS)
def test_parts(name: str, tmp_path: Path) -> None:
    assert read_found(written(tmp_path, {"_target_": name}))


@pytest.mark.parametrize("name", CODE)
def test_code(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "their_module.py"
    module.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Part: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="no part of this project"):
        read_found(written(tmp_path, {"_target_": name, "_partial_": True}))
    assert not (tmp_path / "ran").exists()


def test_a_module_of_the_users_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_module.py").write_text("import os\nclass Part: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = written(tmp_path, {"_target_": "own_module.Part"})
    with pytest.raises(ValueError, match=r"add trust=\[own_module\]"):
        read_found(file)
    node = read_found(file, ["own_module"])["data"]["list"][0]["deep"]
    assert type(build(node)).__module__ == "own_module"
    with pytest.raises(ValueError, match="no part"):  # what a trusted module has imported is not it
        read_found(written(tmp_path, {"_target_": "own_module.os.system"}), ["own_module"])


@pytest.mark.parametrize(
    "text",
    [
        "choices: {}\nx: !!python/object/apply:os.system [ls]",
        "choices: {}\nx: &a [1, 1]\ny: [*a, *a]",
        "choices: {}\nx: " + "[" * 5000,
        "- choices",
        "choices: 3",
        "x: [",
        "\x00",
    ],
)
def test_no_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="is not a run's configuration"):
        read_found(tmp_path / "config.yaml")


def test_what_looks_resolved_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "seen")
    file = written(tmp_path, "${oc.env:SECRET}")
    assert read_found(file)["data"]["list"][0]["deep"] == "${oc.env:SECRET}"


def test_every_part_of_ours_may_be_named(tmp_path: Path) -> None:
    for file in ROOT.rglob("*.yaml"):
        if MISSING not in (text := file.read_text()):  # which a run has filled in
            config = json.loads(json.dumps(yaml.safe_load(text)))  # without aliases
            read_found(written(tmp_path, config))
