"""Names of networks and views: lists of them written out, and mistakes in them found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from data.pairs import PAIRED
from distillers.step import INPUT, Edge, Ref, Teacher, View
from distillers.teachers import Average
from models.classifier import Classifier

OTHERS = "others"  # as a loss's teacher: every other student
RESERVED = {"student", "teacher", INPUT, OTHERS, PAIRED}
OWN = {"student", "teacher", "reads"}  # keys of a loss's entry that are not its own arguments


def expand(
    losses: Mapping[str, Mapping[str, Any]], students: Iterable[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Edge]]:
    """One entry for each student and teacher of a loss, and its edge.

    An entry with several teachers stands for the mean over them.

    Args:
        losses: entries of ``distiller.losses``.
        students: the names of all students.
    """
    entries: dict[str, dict[str, Any]] = {}
    edges: dict[str, Edge] = {}
    for name, entry in losses.items():
        reads = {key: Ref.parse(text) for key, text in (entry.get("reads") or {}).items()}
        ours = _listed(entry.get("student", "student"), f"the loss {name} names as student")
        for ref in map(Ref.parse, ours):
            named = _listed(entry.get("teacher", "teacher"), f"the loss {name} names as teacher")
            if named == [OTHERS]:
                named = [other for other in students if other != ref.name]
            if not named:
                raise ValueError(f"the loss {name} has no teacher: there is no other student")
            for teacher in map(Ref.parse, named):
                parts = [name, *([str(ref)] if len(ours) > 1 else [])]
                parts += [str(teacher)] if len(named) > 1 else []
                key = "_".join(parts).replace(".", "_")
                if key in entries or (key != name and key in losses):
                    raise ValueError(f"there are two losses {key}: call one of them otherwise")
                entries[key] = {k: v for k, v in entry.items() if k not in OWN}
                if len(named) > 1:
                    entries[key]["weight"] = entry.get("weight", 1.0) / len(named)
                edges[key] = Edge(ref, teacher, reads)
    return entries, edges


def averaged(config: dict[str, Any]) -> dict[str, Any]:
    """``ema`` is short for an average of the student, which is deployed."""
    if not config["ema"]:
        return config
    if config["deploy"] != "student":
        raise ValueError(
            f"ema={config['ema']} deploys the average of student, and deploy={config['deploy']} "
            "another network: leave one of them out"
        )
    if "average" in config["teachers"]:
        raise ValueError("ema adds a teacher called average: call yours otherwise")
    target = f"{Average.__module__}.{Average.__qualname__}"
    average = {"_target_": target, "of": "student", "decay": config["ema"]}
    return {**config, "teachers": {**config["teachers"], "average": average}, "deploy": "average"}


def check_new(*groups: Iterable[str]) -> None:
    """Check the names under ``students``, ``teachers``, ``views`` and ``source.pairs``.

    Raises:
        ValueError: for one that is reserved, taken twice, or no word.
    """
    seen: set[str] = set()
    for name in (name for group in groups for name in group):
        if name in RESERVED or name in seen:
            taken = "is taken" if name in seen else "has a meaning of its own"
            raise ValueError(f"the name {name!r} {taken}: call this network or view otherwise")
        if not str(name).isidentifier():
            raise ValueError(f"the name {name!r} is no word of letters, digits and underscores")
        seen.add(name)


def check_names(
    edges: Mapping[str, Edge],
    parts: Mapping[str, Teacher],
    views: Mapping[str, View],
    known: set[str],
    shown: set[str],
    deploy: str,
) -> None:
    """Raise a ValueError for a name that does not exist."""
    named = [("deploy", Ref.parse(deploy))]
    for name, edge in edges.items():
        refs = [edge.student, edge.teacher, *edge.reads.values()]
        named += [(f"the loss {name}", ref) for ref in refs]
    _check_rings(parts)
    for group, found in (("teachers", parts), ("views", views)):
        named += [
            (f"{group}.{n}", Ref.parse(text)) for n, part in found.items() for text in part.of
        ]
    for who, ref in named:
        for name, there, what in ((ref.name, known, "network"), (ref.view, shown, "view")):
            if name not in there and (what, name) != ("network", "teacher"):  # which is said later
                near = difflib.get_close_matches(name, there, 1)
                choice = f"there is: {', '.join(sorted(there))}"
                hint = f"did you mean {near[0]}?" if near else choice
                raise ValueError(f"{who} names the {what} {name!r}, which does not exist; {hint}")


def _check_rings(parts: Mapping[str, Teacher]) -> None:
    """Raise a ValueError for a teacher that asks itself, be it through others."""
    for start in parts:
        seen, waiting = set(), [start]
        while waiting:
            for ref in map(Ref.parse, parts[waiting.pop()].of):
                if ref.name == start:
                    raise ValueError(f"teachers.{start} asks itself: see the names in its of")
                if ref.name in parts and ref.name not in seen:
                    seen.add(ref.name)
                    waiting.append(ref.name)


def check_used(
    parts: Mapping[str, Teacher],
    frozen: Mapping[str, Classifier],
    views: Mapping[str, View],
    used: set[str],
) -> None:
    """Raise a ValueError for a teacher or a view that nothing asks."""
    idle = [f"teachers.{name}" for name in (*parts, *frozen) if name not in used]
    idle += [f"views.{name}" for name in views if f"@{name}" not in used]
    if idle:
        raise ValueError(f"nothing asks {', '.join(idle)}: name it in a loss, or leave it out")


def _listed(value: str | list[str], who: str) -> list[str]:
    found = [value] if isinstance(value, str) else list(value)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{who} {found}: name at least one, and each once")
    return found
