"""The distiller: students, what teaches them, and the objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.objective import Losses, Objective
from core.runtime import Runtime
from data.spec import Batch
from distillers.adapters import adaptations
from distillers.base import Side, side
from distillers.edges import asked, check_trained, graded, taps_of, transfer_losses
from distillers.step import Edge, Ref, Roles, Step, Teacher, View, first
from models.classifier import Classifier


class Distiller(nn.Module):
    """Turns a batch into the students' loss.

    Each loss has an :class:`~distillers.step.Edge`, which says who learns from whom; by default
    ``student`` learns from ``teacher``. If a batch brings the teacher's answers, and the losses
    read only logits, the teacher is not asked again.

    The students and the losses' own parameters (projections) are one module tree, so that DDP, the
    optimizer and the checkpoint see them all. Frozen teachers are outside it: views that no
    ``.train()``, ``.to()`` or ``state_dict()`` reaches. So prepare them first.

    If a loss reads labels and the batch has none, the teacher's predictions are the labels; where
    some inputs have one, it is computed on these alone. Losses
    with parameters that depend on the shapes of features get them from one dry pass, here.

    Args:
        student: with the taps of :func:`distillers.edges.taps_of`; on the runtime's device.
        objective: a weighted sum of transfer losses.
        teacher: likewise on the device, or None. It is run only if something asks it.
        runtime: gives the autocast around networks, and compiles the teachers' views.
        labels: "source" takes a batch's own labels, "teacher" always the teacher's predictions.
        edges: of losses that are not student ← teacher, by the loss's name.
        students: besides ``student``, by name, likewise.
        teachers: besides ``teacher``, by name: networks, and what else answers.
        views: other inputs, by name.
        branches: of students that start from another one's tap: its name, and the tap.

    Attributes:
        adaptations: a line for each pair of features with different shapes, on what joins them.
        teacher: the view of ``teacher``, or None where nothing asks it.
        keeps_asking: whether the teacher is asked also while the losses that learn from it are off,
            for a source that keeps its answers.

    Raises:
        ValueError: for losses that need a teacher where there is none.
    """

    teacher: Classifier | None
    roles: Roles

    def __init__(
        self,
        student: Classifier,
        objective: Objective,
        teacher: Classifier | None,
        runtime: Runtime,
        labels: Literal["source", "teacher"] = "source",
        *,
        edges: Mapping[str, Edge] | None = None,
        students: Mapping[str, Classifier] | None = None,
        teachers: Mapping[str, Classifier | Teacher] | None = None,
        views: Mapping[str, View] | None = None,
        branches: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.students = nn.ModuleDict(dict(students or {}))
        self.objective = objective
        self.runtime, self.labels = runtime, labels
        self.edges = {name: (edges or {}).get(name, Edge()) for name in objective.losses}
        others = dict(teachers or {})
        parts = {n: t for n, t in others.items() if isinstance(t, Teacher)}
        networks = {n: t for n, t in others.items() if isinstance(t, Classifier)}
        self.teachers, self.views = nn.ModuleDict(parts), nn.ModuleDict(dict(views or {}))
        needed = asked(objective, self.edges, parts, dict(views or {}))
        if teacher is not None:
            networks["teacher"] = teacher
        elif "teacher" in needed:
            raise ValueError("the distiller's losses need a teacher, but there is none: name one")
        taps = taps_of(objective, self.edges, parts, branches)
        views_of = {n: t.frozen(taps.get(n, ())) for n, t in networks.items() if n in needed}
        trained = {"student": student, **(students or {})}
        for name, network in trained.items():
            missing = set(taps.get(name, ())) - set(network.taps)
            assert not missing, f"build {name} with the taps {sorted(missing)}"
        ready = graded(objective, self.edges, parts, branches or {})
        check_trained(trained, ready)
        seen = dict(views or {})
        roles = Roles(trained, views_of, parts, seen, runtime, ready, branches or {})
        for name, value in (("teacher", views_of.get("teacher")), ("roles", roles)):
            object.__setattr__(self, name, value)  # past nn.Module, which would register them
        asks = [*objective.ask("needs_label"), *(p.needs_label for p in parts.values())]
        self.needs_label = any([*asks, *(v.needs_label for v in roles.views.values())])
        needy = {n for n, loss in transfer_losses(objective).items() if loss.needs_teacher}
        self.asking = [n for n in sorted(needy) if self.edges[n].teacher == Ref("teacher")]
        self.keeps_asking = True
        self.steps, self.progress = 0, 0.0
        self.adaptations: list[str] = []
        self._prepare()
        for part in parts.values():  # after: a loss may have set weights of a student
            part.prepare(roles)
        for view in views_of.values():
            runtime.compile(view.module)

    @property
    def ask_teacher(self) -> Callable[[Tensor], Tensor] | None:
        """Inputs [B, *shape] to the teacher's logits [B, C], as a step would ask for them.

        None where a batch that brings them spares no step a pass of the teacher: no loss learns
        from it at the input, or one reads its features.
        """
        if not self.asking or self.teacher is None or self.teacher.taps:
            return None
        return lambda x: self.roles.ask("teacher", x).logits

    def at(self, progress: float) -> None:
        """How much of the run is done, in [0, 1]: weights of losses follow schedules."""
        self.progress = progress
        self.objective.at(progress)

    def forward(self, batch: Batch) -> Losses:
        """All networks that the losses ask, then the objective in float32.

        The students are put into train mode first, in case something left them in eval mode.

        Raises:
            ValueError: if labels are needed and neither batch nor teacher gives any.
        """
        self.train()
        step = Step(self.roles, batch, self.steps, self.progress)
        self.steps += 1
        if any(self.keeps_asking or not self.objective.losses[n].off for n in self.asking):
            step.answer("teacher")
        if self.needs_label and (batch.label is None or self.labels == "teacher"):
            if self.teacher is None:
                raise ValueError(
                    "a loss needs labels, but the source gives none and no teacher is asked: "
                    "use a labelled source, or add a loss that reads the teacher"
                )
            label = step.answer("teacher").logits.argmax(dim=1)
            step.batch = dataclasses.replace(batch, label=label, labelled=None)

        def arguments(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return self._arguments(name, step)

        losses = self.objective.compute(arguments, self.runtime.device.type)
        # backward needs a graph if all losses are off, and DDP a gradient for unread parameters
        for name in self.roles.students:
            losses.total = losses.total + 0 * self._any_answer(step, name).logits.sum()
        if (known := step.answers.get(Ref("teacher"))) is not None:
            losses.teacher_logits = known.logits
        with torch.no_grad():
            for teacher in self.roles.teachers.values():
                teacher.record(step)
        return losses

    def updated(self) -> None:
        """Called after every step of the optimizer."""
        for teacher in self.roles.teachers.values():
            teacher.updated()

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]

    def _arguments(self, name: str, step: Step) -> tuple[tuple[Any, ...], dict[str, Any]]:
        edge, loss = self.edges[name], self.objective.losses[name].loss
        needs = getattr(loss, "needs_teacher", True)
        teacher = step.target(edge.teacher) if needs else None
        student = step.answer(edge.student.name, edge.student.view)
        more = {key: step.answer(ref.name, ref.view) for key, ref in edge.reads.items()}
        batch = step.at(edge.student.view)
        if batch.labelled is not None and getattr(loss, "needs_label", False):
            n, teacher = batch.labelled, teacher and first(teacher, batch.labelled)
            more = {key: first(answer, n) for key, answer in more.items()}
            student, batch = first(student, n), batch.first(n)
        return (student, teacher, batch), more

    def _any_answer(self, step: Step, name: str) -> Any:
        """An answer of a student with a graph, for which it is asked if no loss has done so."""
        known = (o for ref, o in step.answers.items() if ref.name == name and o.logits.grad_fn)
        ref = min((ref for ref in self.roles.graded if ref.name == name), key=str)
        return next(known, None) or step.answer(ref.name, ref.view)

    @torch.no_grad()
    def _prepare(self) -> None:
        """One pass over two inputs of noise in eval mode, which changes no network."""
        sides: dict[str, Side] = {}
        for name, loss in transfer_losses(self.objective).items():
            edge = self.edges[name]
            if not loss.wants_shapes:
                continue
            student = self._side(edge.student.name, sides)
            teacher = self._side(edge.teacher.name, sides) if loss.needs_teacher else None
            reads = {key: self._side(ref.name, sides) for key, ref in edge.reads.items()}
            loss.prepare_reads(reads)
            loss.prepare(student, teacher)
            if teacher is not None:
                lines = adaptations(loss, student.outputs, teacher.outputs)
                self.adaptations += [f"{name}: {line}" for line in lines]

    def _side(self, name: str, sides: dict[str, Side]) -> Side:
        if name not in sides:
            network = self.roles.network(name)
            x = network.takes.noise(2, self.runtime.device)
            mode = network.training
            with network.uncounted():
                sides[name] = side(network, network.eval()(x))
            network.train(mode)
        return sides[name]
