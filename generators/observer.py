"""What synthesis sees of teacher and student: frozen views, which synthesis cannot change."""

from __future__ import annotations

from torch import Tensor

from engine.objective import Losses, Objective
from engine.runtime import Runtime
from generators.base import Synthesis
from models.classifier import Classifier


def check_statistics(teacher: Classifier, objective: Objective) -> None:
    """Raise a ValueError if a term reads BatchNorm statistics that the teacher does not have."""
    if any(objective.ask("needs_statistics")) and not teacher.batchnorms():
        raise ValueError(
            f"the teacher {type(teacher.module).__name__} has no BatchNorm layers, whose "
            "statistics this method inverts; methods that work without: dafl, zskt, dfad"
        )


class Observer:
    """Images to the losses of a synthesis objective.

    The gradient passes through teacher and student to the images and stops nowhere on the way:
    both are frozen views, whose parameters take none, with the taps that the terms ask for. The
    student runs only where a term reads its outputs, in eval mode as in the papers' code.

    Raises:
        ValueError: where the teacher lacks what a term reads.
    """

    def __init__(
        self, teacher: Classifier, student: Classifier, objective: Objective, runtime: Runtime
    ) -> None:
        check_statistics(teacher, objective)
        taps = [tap for taps in objective.ask("taps") for tap in taps]
        self.teacher = teacher.frozen(taps, any(objective.ask("needs_statistics")))
        self.student = student.frozen() if any(objective.ask("needs_student")) else None
        self.objective = runtime.prepare(objective)
        self.runtime = runtime
        runtime.compile(self.teacher.module)
        if self.student is not None:
            runtime.compile(self.student.module)

    def __call__(self, images: Tensor, label: Tensor | None) -> Losses:
        with self.runtime.autocast():
            teacher = self.teacher(images)
            student = None if self.student is None else self.student(images)
        losses: Losses = self.objective(Synthesis(images, teacher, student, label))
        return losses
