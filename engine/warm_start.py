"""Students that begin with the weights of a file, or as copies of the teacher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from core.runtime import Runtime
from data.notes import note
from data.spec import InputSpec
from engine.teacher_file import check_before, check_seen
from models.black_box import BlackBox
from models.checkpoint import read_description
from models.classifier import Classifier
from models.pretrained import load_classifier
from models.state_dict import load_state

KEY = re.compile(r"\bteacher\.(?=(weights|mean|std|range)\b)")  # in messages on a teacher's file
TEACHER = "teacher"  # as a student's checkpoint: a copy of the teacher


def students_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of all students, by where they stand: ``student``, ``students.NAME``."""
    others = {f"students.{name}": node for name, node in settings["students"].items()}
    return {"student": settings["student"], **others}


def files_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The files that students begin with, by their keys."""
    nodes = students_of(settings)
    found = {f"{where}.checkpoint": node.get("checkpoint") for where, node in nodes.items()}
    return {key: path for key, path in found.items() if path and path != TEACHER}


def begun(settings: dict[str, Any], teacher: Classifier | None) -> dict[str, Any]:
    """The settings, in which students know the mean and std that go with their first weights.

    What the user gave goes first. A file that does not say leaves both open, and so does a copy of
    a teacher that is shown something else.

    Raises:
        ValueError: for a file that cannot be read.
    """

    def known(node: dict[str, Any]) -> dict[str, Any]:
        described: dict[str, Any] = {}
        if (path := node.get("checkpoint")) == TEACHER:
            alike = node.get("transform") == settings["teacher"].get("transform")
            described = teacher.spec.to_dict() if teacher and alike else {}
        elif path:
            described = read_description(path)
        found = {key: described.get(key) for key in ("mean", "std")}
        return {**node, **{k: v for k, v in found.items() if node.get(k) is None and v is not None}}

    others = {name: known(node) for name, node in settings["students"].items()}
    return settings | {"student": known(settings["student"]), "students": others}


def warm_start(
    network: nn.Module,
    node: Mapping[str, Any],
    where: str,
    seen: InputSpec,
    available: Mapping[str, Any],
) -> str:
    """Give a student's network the weights that it is to begin with.

    Args:
        node: as under ``student``, with a checkpoint.
        where: its place.
        seen: what the network is shown.
        available: what parts may name as arguments.

    Returns:
        A line on it.

    Raises:
        ValueError: for weights of another network, of other classes, or for other inputs.
    """
    if node.get("of"):
        raise ValueError(f"{where} is a branch, and begins with random weights: no checkpoint")
    if (path := node["checkpoint"]) == TEACHER:
        _copy(network, where, seen, available["teacher"])
        return f"{where}: begins as a copy of the teacher"
    dataset, runtime = available["data"], available["runtime"]
    check_before(path, node, where, dataset, runtime)
    found = _load(network, node, where, seen, dataset.classes, runtime)
    check_seen(found.spec, seen, path, where)
    if node.get("transform") is None:
        dataset.check(found.spec, dataset.num_classes, "student")
    unsaid = ", which does not say how its inputs were normalised: as those of this run"
    return f"{where}: begins with {path}" + ("" if read_description(path) else unsaid)


def _load(
    network: nn.Module,
    node: Mapping[str, Any],
    where: str,
    seen: InputSpec,
    classes: tuple[str, ...],
    runtime: Runtime,
) -> Classifier:
    """The student in a file; what is said names the student's keys, not the teacher's."""

    def say(line: str) -> None:
        note(runtime, KEY.sub(f"{where}.", line))  # once, however often the parts are built

    moments, weights = (seen.mean, seen.std), node.get("weights")
    try:
        return load_classifier(
            network, node["checkpoint"], seen, *moments, classes, weights=weights, say=say
        )
    except ValueError as error:
        raise ValueError(KEY.sub(f"{where}.", str(error))) from error


def _copy(network: nn.Module, where: str, seen: InputSpec, teacher: Classifier | None) -> None:
    if teacher is None or isinstance(teacher, BlackBox):
        what = "this method has no teacher" if teacher is None else "a black box shows no weights"
        raise ValueError(f"{where}.checkpoint=teacher: {what}: leave it out, or give a file")
    check_seen(teacher.spec, seen, f"{where}.checkpoint=teacher", where)
    load_state(network, teacher.module.state_dict(), f"{where}.checkpoint=teacher")
