"""The mean and standard deviation of what a transform gives, for students that see through one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from core.build import build
from core.runtime import Runtime
from data.dataset import Dataset
from data.source import balanced
from data.transforms import Transform
from engine.parts import offered
from engine.probe import Probe
from engine.warm_start import first_moments, students_of
from models.classifier import Classifier

MOST = 2048  # inputs that are looked at
SAID = 4  # channels whose values are printed


def measure_moments(
    config: DictConfig,
    settings: dict[str, Any],
    dataset: Dataset,
    teacher: Classifier | None,
    runtime: Runtime,
) -> list[str]:
    """Set the mean and std of every student with a transform that is not given them.

    They are measured on training inputs, or, in a run without data, on inputs that a
    :class:`engine.probe.Probe` synthesizes from the teacher.

    Args:
        config: as composed.
        settings: the same, resolved; its students' nodes are changed.

    Returns:
        A line for each.
    """
    wanting = _wanting(settings, teacher)
    if not wanting:
        return []
    available = offered(settings, dataset, teacher, runtime)
    inputs = _inputs(config, settings, dataset, teacher, runtime)
    whence = "synthesized" if settings["data_free"] else "training"
    lines = []
    for path, node in wanting.items():
        _set(node, path, available, inputs)
        mean, std = (_listed(node[key]) for key in ("mean", "std"))
        lines.append(
            f"{path}: sees mean {mean} and std {std} through its transform, measured on "
            f"{len(inputs):,} {whence} inputs"
        )
    return lines


def provisional(
    settings: dict[str, Any], dataset: Dataset, teacher: Classifier | None, runtime: Runtime
) -> dict[str, Any]:
    """The settings for a trial: what is still to be measured is that of noise."""
    trial = settings | {key: copy.deepcopy(settings[key]) for key in ("student", "students")}
    available = offered(settings, dataset, teacher, runtime)
    noise = available["spec"].noise(64, runtime.device)
    for path, node in _wanting(trial, teacher).items():
        _set(node, path, available, noise)
    return trial


def _wanting(settings: dict[str, Any], teacher: Classifier | None) -> dict[str, dict[str, Any]]:
    """The nodes of students with a transform whose mean or std is unknown, by their places."""
    nodes = {w: n for w, n in students_of(settings).items() if n.get("transform")}
    known = {w: first_moments(n, teacher, settings["teacher"])[0] for w, n in nodes.items()}
    return {w: n for w, n in nodes.items() if len(known[w]) < 2}


def _set(node: dict[str, Any], path: str, available: dict[str, Any], inputs: Tensor) -> None:
    """Give a node what it lacks of the mean and std of what its transform makes of inputs."""
    transform: Transform = build(node["transform"], Transform, f"{path}.transform", **available)
    spec = transform.measured(available["spec"], inputs)
    for key in ("mean", "std"):
        if node.get(key) is None:
            node[key] = list(getattr(spec, key))


def _inputs(
    config: DictConfig,
    settings: dict[str, Any],
    dataset: Dataset,
    teacher: Classifier | None,
    runtime: Runtime,
) -> Tensor:
    if settings["data_free"]:
        assert teacher is not None, "a run without data has a teacher"
        plain = copy.deepcopy(config)
        # What is synthesized needs a student that takes it, and the run's own may not: one of the
        # teacher's architecture, which sees what the teacher sees, does.
        for key in ("model", "transform"):
            plain.student[key] = copy.deepcopy(plain.teacher[key])
        plain.student.checkpoint = plain.student.weights = None
        plain.student.mean, plain.student.std = list(teacher.spec.mean), list(teacher.spec.std)
        plain.students, plain.teachers, plain.views, plain.deploy = {}, {}, {}, "student"
        wanting = list(_wanting(settings, teacher))
        what = f"without data, the mean and std of what {wanting[0]}.transform gives are"
        instead = "set " + " ".join(f"{path}.mean=[...] {path}.std=[...]" for path in wanting)
        return _some(Probe(plain, dataset, teacher, runtime, what, instead).split)
    split = dataset.open("train")
    limit = settings["source"].get("limit")
    if limit is None:
        return _some(split)
    rows = torch.from_numpy(balanced(split.labels.cpu().numpy())[: min(limit, MOST)])
    return split.batch(rows)[0]  # type: ignore[no-any-return]


def _some(split: Any) -> Tensor:
    """Inputs from all over the split, whose rows may be sorted by class."""
    rows = torch.linspace(0, len(split) - 1, min(len(split), MOST), dtype=torch.float64)
    return split.batch(rows.long())[0]  # type: ignore[no-any-return]


def _listed(values: Sequence[float]) -> str:
    if len(values) > SAID:
        return f"from {min(values):.4g} to {max(values):.4g}"
    return ", ".join(f"{x:.4g}" for x in values)
