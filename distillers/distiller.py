"""The distiller: a student, a teacher outside its module tree, and the objective."""

from __future__ import annotations

import dataclasses
from itertools import chain
from typing import Literal

import torch
from torch import nn

from core.objective import Losses, Objective
from core.runtime import Runtime
from data.spec import Batch
from distillers.adapters import adaptations
from distillers.base import TransferLoss, side
from models.black_box import BlackBox, sealed
from models.classifier import Classifier, Outputs
from models.taps import named_taps


def resolve_taps(objective: Objective, student: nn.Module, teacher: Classifier | None) -> None:
    """Let every loss name the stages that it reads, now that both networks are known.

    Raises:
        ValueError: if one of them lacks what a loss reads.
    """
    for loss in transfer_losses(objective):
        if not loss.taps:
            continue
        if isinstance(teacher, BlackBox):
            raise sealed("the features")
        known = named_taps(teacher.module) if teacher else named_taps(student)
        loss.resolve(named_taps(student), known)


def transfer_losses(objective: Objective) -> list[TransferLoss]:
    losses = [weighted.loss for weighted in objective.losses.values()]  # type: ignore[union-attr]
    return [loss for loss in losses if isinstance(loss, TransferLoss)]


def student_taps(objective: Objective) -> tuple[str, ...]:
    """The taps that a student needs for the objective's losses."""
    return tuple(dict.fromkeys(chain(*objective.ask("student_taps"))))


def teacher_taps(objective: Objective) -> tuple[str, ...]:
    """The taps that a teacher needs for the objective's losses."""
    return tuple(dict.fromkeys(chain(*objective.ask("teacher_taps"))))


class Distiller(nn.Module):
    """Turns a batch into the student's loss.

    If inputs have an index, the losses also give KL(p_t ‖ p_s) for each, for a source that chooses
    by it. If a batch brings the teacher's answers, and the losses read only logits, the teacher is
    not asked again.

    The student and the losses' own parameters (projections) are one module tree, so that DDP, the
    optimizer and the checkpoint see them all. The teacher is outside it: a frozen view that no
    ``.train()``, ``.to()`` or ``state_dict()`` reaches. So prepare the teacher first.

    If a loss reads labels and the batch has none, the teacher's predictions are the labels. Losses
    with parameters that depend on the shapes of features get them from one dry pass, here.

    Args:
        student: with the taps of :func:`student_taps`; already on the runtime's device.
        objective: a weighted sum of transfer losses.
        teacher: likewise on the device, or None. It is run only if some loss reads its outputs.
        runtime: gives the autocast around both networks, and compiles the teacher's view.
        labels: "source" takes a batch's own labels, "teacher" always the teacher's predictions.

    Attributes:
        adaptations: a line for each pair of features with different shapes, on what joins them.
        teacher: the view, or None where no loss needs one.

    Raises:
        ValueError: for losses that need a teacher where there is none.
    """

    teacher: Classifier | None

    def __init__(
        self,
        student: Classifier,
        objective: Objective,
        teacher: Classifier | None,
        runtime: Runtime,
        labels: Literal["source", "teacher"] = "source",
    ) -> None:
        super().__init__()
        missing = set(student_taps(objective)) - set(student.taps)
        assert not missing, f"build the student with the taps {sorted(missing)}"
        self.student = student
        self.objective = objective
        self.runtime = runtime
        self.needs_label = any(objective.ask("needs_label"))
        self.labels = labels
        view = None
        if any(objective.ask("needs_teacher")):
            if teacher is None:
                raise ValueError(
                    "the distiller's losses need a teacher, but there is none: name one"
                )
            view = teacher.frozen(taps=teacher_taps(objective))
        object.__setattr__(self, "teacher", view)  # past nn.Module, which would register it
        self.adaptations: list[str] = []
        self._prepare(runtime)
        if view is not None:
            runtime.compile(view.module)

    def forward(self, batch: Batch) -> Losses:
        """Both networks on one batch, then the objective in float32.

        The student is put into train mode first, in case something left it in eval mode.

        Raises:
            ValueError: if labels are needed and neither batch nor teacher gives any.
        """
        self.train()
        teacher = self._ask_teacher(batch)
        with self.runtime.autocast():
            student = self.student(batch.student_input)
        if self.needs_label and (batch.label is None or self.labels == "teacher"):
            if teacher is None:
                raise ValueError(
                    "a loss needs labels, but the source gives none and no teacher is asked: "
                    "use a labelled source, or add a loss that reads the teacher"
                )
            batch = dataclasses.replace(batch, label=teacher.logits.argmax(dim=1))
        losses: Losses = self.objective(student, teacher, batch)
        # backward needs a graph if all losses are off, and DDP a gradient for unread parameters
        losses.total = losses.total + 0 * student.logits.sum()
        if teacher is not None:
            losses.teacher_logits = teacher.logits
        return losses

    @torch.no_grad()
    def _prepare(self, runtime: Runtime) -> None:
        """One pass over two inputs of noise in eval mode, which changes neither network."""
        named = {name: weighted.loss for name, weighted in self.objective.losses.items()}
        losses = {n: t for n, t in named.items() if isinstance(t, TransferLoss) and t.wants_shapes}
        if not losses:
            return
        x = self.student.spec.noise(2, runtime.device)
        mode = self.student.training
        dry = side(self.student, self.student.eval()(x))
        self.student.train(mode)
        guide = None
        if self.teacher is not None:
            with self.teacher.uncounted():
                guide = side(self.teacher, self.teacher(x))
        for name, loss in losses.items():
            loss.prepare(dry, guide)
            if guide is not None:
                lines = adaptations(loss, dry.outputs, guide.outputs)
                self.adaptations += [f"{name}: {line}" for line in lines]

    @torch.no_grad()
    def _ask_teacher(self, batch: Batch) -> Outputs | None:
        if self.teacher is None:
            return None
        if batch.teacher_logits is not None and not self.teacher.taps:
            return Outputs(batch.teacher_logits)
        with self.runtime.autocast():
            return self.teacher(batch.teacher_input)
