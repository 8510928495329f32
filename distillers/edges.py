"""What the losses of an objective ask of which network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from core.objective import Objective
from distillers.base import TransferLoss
from distillers.step import Edge, Ref, Teacher, View
from models.black_box import BlackBox, sealed
from models.classifier import Classifier
from models.taps import named_taps


def transfer_losses(objective: Objective) -> dict[str, TransferLoss]:
    """The losses by name."""
    losses = {name: weighted.loss for name, weighted in objective.losses.items()}
    return {name: loss for name, loss in losses.items() if isinstance(loss, TransferLoss)}


def resolve_taps(
    objective: Objective,
    student: nn.Module,
    teacher: Classifier | None,
    edges: Mapping[str, Edge] | None = None,
    others: Mapping[str, nn.Module] | None = None,
) -> None:
    """Let every loss name the stages that it reads, now that all networks are known.

    Args:
        student: the module of ``student``.
        teacher: the network of ``teacher``, or None.
        edges: of losses that are not student ← teacher.
        others: the modules of all other networks, by name.

    Raises:
        ValueError: if one of them lacks what a loss reads.
    """
    modules = {"student": student, "teacher": teacher.module if teacher else student}
    modules |= others or {}
    for name, loss in transfer_losses(objective).items():
        if not loss.taps:
            continue
        edge = (edges or {}).get(name, Edge())
        read = {key: ref.name for key, ref in edge.reads.items()}
        if isinstance(teacher, BlackBox) and "teacher" in (edge.teacher.name, *read.values()):
            raise sealed("the features")
        for role in (edge.student.name, edge.teacher.name, *read.values()):
            if role not in modules:
                raise ValueError(f"the loss {name} reads features, but {role} has only logits")
        more = {key: named_taps(modules[role]) for key, role in read.items()}
        pair = (named_taps(modules[r]) for r in (edge.student.name, edge.teacher.name))
        loss.resolve(*pair, **more)


def taps_of(
    objective: Objective,
    edges: Mapping[str, Edge],
    teachers: Mapping[str, Teacher] | None = None,
    branches: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """The taps that each network needs, by its name."""
    found: dict[str, dict[str, None]] = {}

    def add(name: str, taps: Iterable[str]) -> None:
        found.setdefault(name, {}).update(dict.fromkeys(taps))

    for name, loss in transfer_losses(objective).items():
        edge = edges.get(name, Edge())
        add(edge.student.name, loss.student_taps)
        add(edge.teacher.name, loss.teacher_taps)
        for key, ref in edge.reads.items():
            add(ref.name, loss.read_taps.get(key, ()))
    for teacher in (teachers or {}).values():
        for name, taps in teacher.taps.items():
            add(name, taps)
    for trunk, tap in (branches or {}).values():
        add(trunk, (tap,))
    return {name: tuple(taps) for name, taps in found.items()}


def student_taps(objective: Objective) -> tuple[str, ...]:
    """The taps that the student needs where every loss is student ← teacher."""
    return taps_of(objective, {}).get("student", ())


def teacher_taps(objective: Objective) -> tuple[str, ...]:
    """The taps that the teacher needs there."""
    return taps_of(objective, {}).get("teacher", ())


def asked(
    objective: Objective,
    edges: Mapping[str, Edge],
    teachers: Mapping[str, Teacher],
    views: Mapping[str, View],
) -> set[str]:
    """The names of all that a step asks, directly or through what answers and what is shown."""
    found: set[str] = set()
    waiting = [str(ref) for ref in _refs(objective, edges)]
    waiting += [name for name, teacher in teachers.items() if _records(teacher)]
    while waiting:
        ref = Ref.parse(waiting.pop())
        for name, part in (
            (ref.name, teachers.get(ref.name)),
            (f"@{ref.view}", views.get(ref.view)),
        ):
            if name not in found:
                found.add(name)
                waiting += list(part.of) if part is not None else []
    return found


def graded(
    objective: Objective,
    edges: Mapping[str, Edge],
    teachers: Mapping[str, Teacher],
    branches: Mapping[str, tuple[str, str]],
) -> frozenset[Ref]:
    """The answers through which a gradient flows: of those that learn, and of what they read."""
    found: set[Ref] = set()
    waiting = [ref for name in objective.losses for ref in _learning(edges.get(name, Edge()))]
    waiting += [
        edge.teacher
        for edge in edges.values()
        if edge.teacher.name in teachers and not teachers[edge.teacher.name].detached
    ]
    while waiting:
        ref = waiting.pop()
        if ref not in found:
            found.add(ref)
            part = teachers.get(ref.name)
            waiting += [Ref.parse(name).seen_at(ref.view) for name in (part.of if part else ())]
            waiting += [Ref(branches[ref.name][0], ref.view)] if ref.name in branches else []
    return frozenset(found)


def check_trained(students: Iterable[str], ready: frozenset[Ref]) -> None:
    """Raise a ValueError for a student through none of whose answers a gradient flows."""
    if idle := set(students) - {ref.name for ref in ready}:
        raise ValueError(
            f"no loss trains {', '.join(sorted(idle))}: name it as the student of one, or leave it "
            "out"
        )


def _learning(edge: Edge) -> list[Ref]:
    return [edge.student, *edge.reads.values()]


def _refs(objective: Objective, edges: Mapping[str, Edge]) -> list[Ref]:
    found = []
    for name, weighted in objective.losses.items():
        edge = edges.get(name, Edge())
        found += _learning(edge)
        if getattr(weighted.loss, "needs_teacher", True):
            found.append(edge.teacher)
    return found


def _records(teacher: Teacher) -> bool:
    return type(teacher).record is not Teacher.record
