"""Small runs of every method and loss on signals, vectors and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from core.runtime import Runtime
from data.dataset import Dataset
from data.spec import InputSpec
from engine.config import compose, plain
from engine.networks import build_network
from engine.parts import Parts, build_dataset, build_parts
from engine.teacher import networks_of
from models.classifier import Classifier
from models.pretrained import freeze
from tests.test_contracts import SMALL
from tests.texts import texts

RECORD = Path(__file__).resolve().parents[1] / "docs" / "modalities.yaml"
DATA = {
    "signal": [
        *("data=two_tones", "data.dataset.length=64", "data.dataset.count=80"),
        *("teacher.model.width=4", "teacher.model.kernel=9", "teacher.model.stride=2"),
        *("student.model.width=3", "student.model.kernel=9", "student.model.stride=2"),
    ],
    "vector": ["data=breast_cancer", "teacher.model.widths=[8,8]", "student.model.widths=[6,6]"],
    "text": [
        *("data=csv_text", f"data.path={texts()}", "data.dataset.length=6"),
        *("teacher.model.width=6", "teacher.model.channels=4"),
        *("student.model.width=4", "student.model.channels=3"),
    ],
}


def recorded() -> dict[str, dict[str, list[str]]]:
    """Of each method and loss, the modalities that it knows."""
    found: dict[str, dict[str, list[str]]] = yaml.safe_load(RECORD.read_text())
    return found


def parts_of(kind: str, *overrides: str, runtime: Runtime | None = None) -> Parts:
    """The parts of a run with untrained teachers, on the CPU by default.

    Raises:
        ValueError: for what does not know the modality.
    """
    arguments = ["batch_size=8", "device=cpu", "generator.channels=8", *DATA[kind], *overrides]
    config = compose(arguments)
    for key, value in SMALL.items():
        if OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, value)
    settings = plain(config)
    runtime = runtime or Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    nodes = networks_of(settings)
    nodes |= {"teacher": settings["teacher"]} if settings["needs_teacher"] else {}
    teachers = {name: untrained(node, dataset, runtime) for name, node in nodes.items()}
    torch.manual_seed(1)
    return build_parts(settings, dataset, teachers.pop("teacher", None), runtime, teachers)


def untrained(node: dict[str, Any], dataset: Dataset, runtime: Runtime) -> Classifier:
    torch.manual_seed(7)
    device = runtime.device
    shape, width = dataset.shape, dataset.shape[0]
    moments = ((0.0,), (1.0,)) if dataset.words else ((0.3,) * width, (0.4,) * width)
    known = (dataset.kind.name, dataset.rate, dataset.words)
    spec = InputSpec(shape, dataset.range, *moments, *known)
    teacher = Classifier(
        build_network(node["model"], shape, dataset.classes, spec=spec), spec, dataset.classes
    )
    teacher.to(device).train()
    with torch.no_grad():
        for _ in range(3):
            teacher(spec.noise(16, device))
    return runtime.prepare(freeze(teacher))  # type: ignore[return-value]


def refusal(kind: str, *overrides: str) -> str:
    """The reason why a run is refused, or "" after two steps that work.

    A rehearsal takes the first of them before anything is trained.
    """
    try:
        parts = parts_of(kind, *overrides)
        learn(parts)
    except ValueError as error:
        return str(error)
    learn(parts)
    return ""


def learn(parts: Parts) -> None:
    batch = parts.source.next()
    assert batch.input.shape[1:] == parts.student.takes.shape
    assert batch.input.isfinite().all()
    losses = parts.distiller(batch)
    assert losses.total.isfinite()
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parts.student.parameters())
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    parts.distiller.updated()
    parts.source.learned(batch, losses)
