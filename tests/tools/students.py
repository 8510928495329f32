"""Run directories with untrained students, made without a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from data.spec import InputSpec
from engine.choices import ROOT
from engine.networks import build_network
from models.checkpoint import save_network
from models.classifier import Classifier
from models.pretrained import freeze

CLASSES = ("cat", "dog", "émeu", "no", "1e3")


def node_of(choice: str, /, **keys: Any) -> dict[str, Any]:
    """What ``student=choice`` describes."""
    node = OmegaConf.to_container(OmegaConf.load(ROOT / f"model/{choice}.yaml"))
    assert isinstance(node, dict)
    return {str(k): v for k, v in node.items()} | keys


def made(folder: Path, node: dict[str, Any], shape: tuple[int, ...], **spec: Any) -> Classifier:
    """A student whose BatchNorm has seen something, in a run directory."""
    torch.manual_seed(0)
    module = build_network(node, shape, CLASSES)
    low, high = spec.get("range", (0.0, 1.0))
    moments = {"mean": (0.3,) * shape[0], "std": (0.2,) * shape[0]}
    student = Classifier(module, InputSpec(shape, **(moments | spec)), CLASSES)
    with torch.no_grad():
        for _ in range(3):
            student.train()(low + (high - low) * torch.rand(8, *shape))
    folder.mkdir()
    save_network(folder / "student.safetensors", student, {"architecture": "a name"})
    choices = {"method": "kd", "data": "digits", "teacher": "big", "student": "a name"}
    config = {"student": {"model": node}, "choices": choices, "seed": 3, "steps": 24}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return freeze(student)


def raw(student: Classifier, count: int) -> torch.Tensor:
    """Inputs in the student's value range."""
    low, high = student.spec.range
    noise = torch.Generator().manual_seed(count)
    return low + (high - low) * torch.rand(count, *student.spec.shape, generator=noise)


def needs_onnx() -> None:
    """Skip the test where the extra is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs pip install -e '.[export]'")
