"""Students that begin with the weights of a file, or as copies of the teacher."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from data.notes import note
from data.spec import InputSpec
from engine.teacher_file import alike, check_before, check_names, check_seen
from models.black_box import BlackBox
from models.checkpoint import SUFFIXES, read_description, read_spec
from models.classifier import Classifier
from models.external import library_defaults
from models.pretrained import load_classifier
from models.state_dict import load_state

TEACHER = "teacher"  # as a student's checkpoint: a copy of the teacher
# In messages on a teacher's file, keys that a student has too, and the word where it is no name.
OTHER = "|".join(["checkpoint", *(suffix[1:] for suffix in SUFFIXES)])  # a teacher's, or a file's
KEY = re.compile(rf"(?<![\w./'])teacher(?=\.(?!(?:{OTHER})\b)\w|=)")
WORD = re.compile(r"\b(the|a|another) teacher\b")
Node = Mapping[str, Any]


def students_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of all students, by where they stand: ``student``, ``students.NAME``."""
    others = {f"students.{name}": node for name, node in settings["students"].items()}
    return {"student": settings["student"], **others}


def files_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The files that networks are read from, by their keys."""
    nodes = {"teacher": settings["teacher"]}
    nodes |= {f"teachers.{name}": node for name, node in settings["teachers"].items()}
    nodes |= {w: n for w, n in students_of(settings).items() if n.get("checkpoint") != TEACHER}
    found = {f"{where}.checkpoint": node.get("checkpoint") for where, node in nodes.items()}
    return {key: path for key, path in found.items() if path}


def copies_teacher(settings: Mapping[str, Any]) -> bool:
    """Whether a student begins as a copy of the teacher."""
    return any(node.get("checkpoint") == TEACHER for node in students_of(settings).values())


def first_moments(
    node: Node, teacher: Classifier | None, teacher_node: Node, channels: int = 0
) -> tuple[dict[str, tuple[float, ...]], str]:
    """The ``mean`` and ``std`` of what a student is shown, as far as they need not be measured.

    They are what the user gave, or else go with its first weights: the file's, or without a
    transform those of the library that the network is from; of a copy those of the teacher, if it
    is shown the same.

    Args:
        node: as under ``student``.
        teacher_node: that of the teacher.
        channels: of an input; a library's moments for another number are left out.

    Returns:
        What is known, and the library that said so, or none.

    Raises:
        ValueError: for a file that cannot be read.
    """
    found: dict[str, Any] = {}
    library, path = "", node.get("checkpoint")
    if path == TEACHER:
        seen, theirs = node.get("transform"), teacher_node.get("transform")
        if teacher is not None and (seen == theirs or alike(theirs, seen)):
            found = teacher.spec.to_dict()
    elif path and not (found := read_description(path)) and not node.get("transform"):
        library, found = library_defaults(node["model"])
        if len(found.get("mean", ())) != channels:
            library, found = "", {}
    found |= {key: value for key, value in node.items() if value is not None}
    known = {key: tuple(found[key]) for key in ("mean", "std") if found.get(key) is not None}
    return known, library


def check_start(node: Node, where: str, seen: InputSpec, available: Mapping[str, Any]) -> None:
    """Check what a student is to begin with, as far as a file's header says, before it is built.

    Args:
        where: the node's place.
        seen: what its network is shown.

    Raises:
        ValueError: for weights of a network that was shown something else.
    """
    path = node.get("checkpoint")
    if node.get("weights") and (not path or path == TEACHER):
        raise ValueError(
            f"{where}.weights names a part of the file {where}.checkpoint=FILE, which is not given"
        )
    if not path:
        return
    teacher = available["teacher"]
    if path == TEACHER and (teacher is None or isinstance(teacher, BlackBox)):
        what = "this method has no teacher" if teacher is None else "a black box shows no weights"
        raise ValueError(f"{where}.checkpoint=teacher: {what}: leave it out, or give a file")
    name = f"{where}.checkpoint={TEACHER}" if path == TEACHER else path
    with reworded(where):
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
        with reworded(where, more=f"; {where}.checkpoint=null begins with random weights"):
            load_state(network, state, name)
        return f"{where}: begins as a copy of the teacher"

    def say(line: str) -> None:  # once, however often the network is built
        note(available["runtime"], reword(line, where))

    weights, dataset = node.get("weights"), available["data"]
    with reworded(where):
        moments, classes = (seen.mean, seen.std), dataset.classes
        found = load_classifier(network, path, seen, *moments, classes, weights=weights, say=say)
        check_names(found.classes, dataset, path)
    return f"{where}: begins with {path}{_normalised(node, seen)}"


def _normalised(node: Node, seen: InputSpec) -> str:
    """What is to be said of the mean and std that a file does not tell."""
    known, library = first_moments(node, None, {}, seen.shape[0])
    if seen.kind.discrete or (len(known) == 2 and not library):
        return ""
    if library:
        return f", its inputs normalised as for {library}"
    return ", which does not say how its inputs were normalised: as those of this run"


def reword(text: str, where: str, noun: str = "student") -> str:
    """A message about a teacher's file, as one about another network's.

    Args:
        where: the place of the network's keys, as ``teacher`` is that of a teacher's.
        noun: what it is called.
    """
    return WORD.sub(rf"\1 {noun}", KEY.sub(where, text))


@contextmanager
def reworded(where: str, noun: str = "student", more: str = "") -> Iterator[None]:
    """Errors about a teacher's file, by :func:`reword`, with ``more`` at their end."""
    try:
        yield
    except ValueError as error:
        raise ValueError(reword(str(error), where, noun) + more) from error
