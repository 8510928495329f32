"""The printed lines load a student where this project is not, and answer as the student does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.spec import InputSpec
from engine.loading import exported_lines, loading_lines, needs_source
from engine.student import architecture, student_of
from models.checkpoint import save_network
from models.classifier import Classifier
from models.texts import TextCNN
from tests.tools.students import CLASSES, made, node_of, raw
from tools.export import main

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, in_channels, input_size, num_classes, norm):
        super().__init__()
        height, width = input_size
        self.layers = nn.Sequential(norm(num_channels=in_channels), nn.Flatten())
        self.linear = nn.Linear(in_channels * height * width, num_classes)

    def forward(self, x):
        return self.linear(self.layers(x))
"""
NORM = {"_target_": "torch.nn.GroupNorm", "_partial_": True, "num_groups": 1, "eps": 0.5}
ELSEWHERE = """
import importlib.util, os, pathlib, torch

assert not any(map(importlib.util.find_spec, ("core", "engine", "models", "data")))
for folder in pathlib.Path.cwd().iterdir():
    if (folder / "lines.py").exists():
        os.chdir(folder)
        names = {"x": torch.load("x.pt")}
        with torch.no_grad():
            exec(pathlib.Path("lines.py").read_text(), names)
        torch.save(names["logits"], "logits.pt")
"""


def prepare(folder: Path, node: dict[str, Any], shape: tuple[int, ...], **spec: Any) -> Tensor:
    """A run directory with its lines and inputs; returns what the student says of them."""
    student = made(folder, node, shape, **spec)
    (folder / "lines.py").write_text(loading_lines(node, student.spec, len(CLASSES)))
    torch.save(x := raw(student, 5), folder / "x.pt")
    logits: Tensor = student(x).logits
    return logits


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor, str]]:
    """What students say, what they say in a process without this project, and by which lines."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "mine.py").write_text(OWN)
    (folder / "elsewhere.py").write_text(ELSEWHERE)
    sys.path.insert(0, str(folder))
    wide = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.4, 1 / 3), "range": (-1.0, 1.0)}
    timm = node_of("timm", name="test_resnet")
    mobile = node_of("torchvision", name="shufflenet_v2_x0_5")
    wanted = {
        "torchvision": prepare(folder / "torchvision", mobile, (3, 32, 32), **wide),
        "timm": prepare(folder / "timm", timm, (1, 32, 32)),
        "own": prepare(folder / "own", {"_target_": "mine.Net", "norm": NORM}, (2, 4, 6)),
        "pt2": prepare(folder / "pt2", node_of("digits_cnn_small", width=4), (1, 8, 8)),
    }
    sys.path.remove(str(folder))
    assert main([str(folder / "pt2"), str(folder / "pt2" / "student.pt2")]) == 0
    exported = exported_lines(student_of(folder / "pt2").spec)
    (folder / "pt2" / "lines.py").write_text(exported)
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "elsewhere.py"], cwd=folder, env=alone, check=True)
    return {
        name: (
            logits,
            torch.load(folder / name / "logits.pt"),
            (folder / name / "lines.py").read_text(),
        )
        for name, logits in wanted.items()
    }


@pytest.mark.parametrize("name", ["torchvision", "timm", "own", "pt2"])
def test_the_lines_run_without_this_project(
    name: str, elsewhere: dict[str, tuple[Tensor, Tensor, str]]
) -> None:
    wanted, got, lines = elsewhere[name]
    torch.testing.assert_close(got, wanted)
    code = [line for line in lines.splitlines() if not line.startswith("#")]
    assert len(code) == (3 if name == "pt2" else 5)
    comments = lines.count("\n# ") + lines.startswith("# ")
    assert comments == (1 if name == "own" else 0)


def test_the_lines_of_a_student_of_texts(tmp_path: Path) -> None:
    """Words are not normalised."""
    words = ("<pad>", "<unk>", "a", "b")
    spec = InputSpec((4, 5), modality="text", words=words)
    node = {"_target_": "models.texts.TextCNN", "width": 3, "channels": 3}
    module = TextCNN(4, 2, width=3, channels=3).eval()
    file = tmp_path / "student.safetensors"
    save_network(file, Classifier(module, spec, ("x", "y")), {})
    names: dict[str, Any] = {"x": spec.noise(6, torch.device("cpu"))}
    exec(loading_lines(node, spec, 2, str(file)), names)
    assert torch.equal(names["logits"], module(names["x"]))


def test_the_lines_of_a_torchvision_student(
    elsewhere: dict[str, tuple[Tensor, Tensor, str]],
) -> None:
    assert elsewhere["torchvision"][2] == (
        "import safetensors.torch, torch, torchvision\n"
        "model = torchvision.models.get_model('shufflenet_v2_x0_5', num_classes=5).eval()\n"
        'model.load_state_dict(safetensors.torch.load_file("student.safetensors"))\n'
        "mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.4, 0.3333333333333333]])"
        ".view(2, 3, 1, 1)\n"
        "logits = model((x - mean) / std)"
        "  # x: float32 [N, 3, 32, 32] with values from -1 to 1"
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [("digits_cnn_small", (1, 8, 8)), ("resnet8x4", (3, 16, 16)), ("simkd", (1, 8, 8))],
)
def test_the_lines_of_a_network_of_ours(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    node = node_of(name)
    student = made(tmp_path / "run", node, shape)
    assert needs_source(architecture(tmp_path / "run"))
    file = str(tmp_path / "run" / "student.safetensors")
    lines = loading_lines(node, student.spec, len(CLASSES), file)
    assert lines.startswith("# needs the source of models.")
    names: dict[str, Any] = {"x": raw(student, 5)}
    exec(lines, names)
    assert torch.equal(names["logits"], student(names["x"]).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "densenet121", "vit_b_16", "mobilenet_v2"])
def test_torchvision_alone_takes_the_weights(name: str, tmp_path: Path) -> None:
    """Also where ours has modules without weights that torchvision's has not."""
    keys = {"image_size": 64} if name.startswith("vit") else {}
    node = node_of("torchvision", name=name, **keys)
    student = made(tmp_path / "run", node, (3, 64, 64))
    file = str(tmp_path / "run" / "student.safetensors")
    names: dict[str, Any] = {"x": raw(student, 2)}
    exec(loading_lines(node, student.spec, len(CLASSES), file), names)
    torch.testing.assert_close(names["logits"], student(names["x"]).logits)
