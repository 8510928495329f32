"""Students that begin with the weights of a file, or as copies of the teacher."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from data.notes import note
from data.spec import InputSpec
from engine.expected import expected
from engine.schema import TeacherConfig
from engine.teacher_file import alike, check_before, check_seen
from models.black_box import BlackBox
from models.checkpoint import read_spec
from models.classifier import Classifier
from models.pretrained import load_classifier
from models.state_dict import load_state

TEACHER = "teacher"  # as a student's checkpoint: a copy of the teacher
Node = Mapping[str, Any]


def students_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of all students, by where they stand: ``student``, ``students.NAME``."""
    others = {f"students.{name}": node for name, node in settings["students"].items()}
    return {"student": settings["student"], **others}


def files_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The files that networks are read from, by their keys."""
    nodes = {"teacher": settings["teacher"], **students_of(settings)}
    nodes |= {f"teachers.{name}": node for name, node in settings["teachers"].items()}
    found = {f"{where}.checkpoint": node.get("checkpoint") for where, node in nodes.items()}
    return {key: path for key, path in found.items() if path and path != TEACHER}


def copies_teacher(settings: Mapping[str, Any]) -> bool:
    """Whether a student begins as a copy of the teacher."""
    return any(node.get("checkpoint") == TEACHER for node in students_of(settings).values())


def first_moments(
    node: Node, teacher: Classifier | None, teacher_node: Node
) -> dict[str, tuple[float, ...]]:
    """The ``mean`` and ``std`` of what a student is shown, as far as they need not be measured.

    They are what the user gave, or else go with its first weights: the file's, or those of the
    library that the network is from; of a copy those of the teacher, if it is shown the same.

    Args:
        node: as under ``student``.
        teacher_node: that of the teacher.

    Raises:
        ValueError: for a file that cannot be read.
    """
    described: dict[str, Any] = dict(node)
    if (path := node.get("checkpoint")) == TEACHER:
        seen, theirs = node.get("transform"), teacher_node.get("transform")
        if teacher is not None and (seen == theirs or alike(theirs, seen)):
            described = teacher.spec.to_dict() | {k: v for k, v in node.items() if v is not None}
    elif path:
        known = {f.name: node.get(f.name) for f in fields(TeacherConfig)}
        described = expected(known).values
    found = {key: described.get(key) for key in ("mean", "std")}
    return {key: tuple(values) for key, values in found.items() if values is not None}


def check_start(node: Node, where: str, seen: InputSpec, available: Mapping[str, Any]) -> None:
    """Check what a student is to begin with, as far as a file's header says, before it is built.

    Args:
        where: the node's place.
        seen: what its network is shown.

    Raises:
        ValueError: for weights of a network that was shown something else.
    """
    path = node.get("checkpoint")
    if node.get("weights") and path in (None, TEACHER):
        raise ValueError(
            f"{where}.weights names a part of the file {where}.checkpoint=FILE, which is not given"
        )
    if path is None:
        return
    teacher = available["teacher"]
    if path == TEACHER and (teacher is None or isinstance(teacher, BlackBox)):
        what = "this method has no teacher" if teacher is None else "a black box shows no weights"
        raise ValueError(f"{where}.checkpoint=teacher: {what}: leave it out, or give a file")
    name = f"{where}.checkpoint={TEACHER}" if path == TEACHER else path
    with reworded(name, where):
        if path == TEACHER:
            return check_seen(teacher.spec, seen, name)
        dataset = available["data"]
        check_before(path, node, where, dataset, available["runtime"])
        if (spec := read_spec(path)) is not None:
            if node.get("transform") is None and "+" not in spec.modality:
                dataset.check(spec, dataset.num_classes)
            check_seen(spec, seen, path)


def warm_start(
    network: nn.Module, node: Node, where: str, seen: InputSpec, available: Mapping[str, Any]
) -> str:
    """Give a student's network the weights that it is to begin with.

    Args:
        node: as under ``student``, with a checkpoint that :func:`check_start` knows.
        where: its place.
        seen: what the network is shown.
        available: what parts may name as arguments.

    Returns:
        A line on it.

    Raises:
        ValueError: for weights of another network, or of other classes.
    """
    if (path := node["checkpoint"]) == TEACHER:
        state, name = available["teacher"].module.state_dict(), f"{where}.checkpoint={TEACHER}"
        with reworded(name, where, more=f"; {where}.checkpoint=null begins with random weights"):
            load_state(network, state, name)
        return f"{where}: begins as a copy of the teacher"
    say = functools.partial(note, available["runtime"])  # once, however often it is built
    weights, classes = node.get("weights"), available["classes"]
    with reworded(path, where):
        load_classifier(network, path, seen, seen.mean, seen.std, classes, weights=weights, say=say)
    known = {"mean", "std"} <= first_moments(node, None, {}).keys()
    unsaid = ", which does not say how its inputs were normalised: as those of this run"
    return f"{where}: begins with {path}" + ("" if known else unsaid)


@contextmanager
def reworded(path: str | Path, where: str, noun: str = "student", more: str = "") -> Iterator[None]:
    """Errors about a teacher's file, reworded for another network's.

    Args:
        path: of the file, which stays as it is.
        where: the place of the network's keys, as ``teacher`` is that of a teacher's.
        noun: what it is called.
        more: what messages end with.
    """
    try:
        yield
    except ValueError as error:
        parts = str(error).split(str(path))
        parts = [re.sub(r"\bteacher\b(?=[.=])", where, part) for part in parts]
        parts = [re.sub(r"\bteacher\b", noun, part) for part in parts]
        raise ValueError(str(path).join(parts) + more) from error
