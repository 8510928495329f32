"""One step of distillation: every network at every view, asked once, when a loss needs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.annotations import check_needs
from core.runtime import Runtime
from data.spec import Batch
from models.classifier import Classifier, Outputs
from models.recording import full_precision

INPUT = "input"  # the view that shows a network the batch as it is


@dataclass(frozen=True)
class Ref:
    """The answer of a network at a view, written ``NAME`` or ``NAME@VIEW``."""

    name: str
    view: str = INPUT

    @classmethod
    def parse(cls, text: str) -> Ref:
        name, _, view = text.partition("@")
        return cls(name, view or INPUT)

    def seen_at(self, view: str) -> Ref:
        """The same network at a view, unless this names one of its own."""
        return Ref(self.name, view) if self.view == INPUT else self

    def __str__(self) -> str:
        return self.name if self.view == INPUT else f"{self.name}@{self.view}"


@dataclass(frozen=True)
class Edge:
    """Who learns from whom: what a loss is called with.

    Args:
        student: takes the gradient.
        teacher: the target; without gradient, unless the teacher says otherwise.
        reads: further answers, by the argument of the loss that takes them; with gradient.
    """

    student: Ref = Ref("student")
    teacher: Ref = Ref("teacher")
    reads: Mapping[str, Ref] = field(default_factory=dict)


class Teacher(nn.Module):
    """What answers and is no network of its own: a combination, an average, a memory.

    Attributes:
        of: the names of what it asks.
        taps: the features that it reads, by network.
        detached: whether its answers are targets without gradient.
        needs_label: whether it reads ``batch.label``.
        needs_index: whether it reads ``batch.index``.
    """

    of: Sequence[str] = ()
    taps: Mapping[str, Sequence[str]] = {}
    detached = True
    needs_label = False
    needs_index = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        check_needs(cls, Teacher)

    def prepare(self, roles: Roles) -> None:
        """Build what depends on the networks; called once, before the optimizer is made."""

    def forward(self, step: Step, view: str) -> Outputs:
        """Its answer at a view."""
        raise NotImplementedError

    def record(self, step: Step) -> None:
        """Called without gradient at the end of every step's losses: nothing by default."""

    def updated(self) -> None:
        """Called after every step of the optimizer: nothing by default."""

    def network(self) -> Classifier | None:
        """A network that can be evaluated and saved, where there is one."""
        return None


class View(nn.Module):
    """Another input of the same space as the batch's.

    Attributes:
        of: the names of the networks that it asks.
        needs_label: whether it reads ``batch.label``.
    """

    of: Sequence[str] = ()
    needs_label = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        check_needs(cls, View)

    def forward(self, step: Step) -> Tensor:
        """Inputs [B, *shape] in the range of the batch's, without gradient."""
        raise NotImplementedError


@dataclass
class Roles:
    """Everything that a step can ask, by name.

    Args:
        students: trained networks.
        frozen: networks that are not.
        teachers: what else answers.
        views: besides the batch's own input.
        runtime: gives the autocast around networks, and noise.
        graded: answers of students through which a gradient flows; others are made without a graph.
        branches: the trunk of a student, and its tap, where it has one.
    """

    students: Mapping[str, Classifier]
    frozen: Mapping[str, Classifier]
    teachers: Mapping[str, Teacher]
    views: Mapping[str, View]
    runtime: Runtime
    graded: frozenset[Ref] = frozenset()
    branches: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def ask(self, name: str, x: Tensor) -> Outputs:
        """What a frozen network answers to inputs [B, *shape]."""
        with torch.no_grad(), self.runtime.autocast():
            return self.frozen[name](x)  # type: ignore[no-any-return]

    def network(self, name: str) -> Classifier:
        """A network, to be asked about inputs of one's own."""
        return self.students[name] if name in self.students else self.frozen[name]


class Step:
    """The answers of one step.

    Args:
        roles: what can be asked.
        batch: from the source.
        number: of the step, from 0; noise depends on it.
        progress: share of the run that is done, in [0, 1].
    """

    def __init__(self, roles: Roles, batch: Batch, number: int = 0, progress: float = 0.0) -> None:
        self.roles, self.batch, self.number, self.progress = roles, batch, number, progress
        self.answers: dict[Ref, Outputs] = {}
        self.inputs: dict[str, Tensor] = {INPUT: batch.input, **batch.views}

    def view(self, name: str) -> Tensor:
        """The inputs at a view."""
        if name not in self.inputs:
            self.inputs[name] = self.roles.views[name](self).detach()
        return self.inputs[name]

    def at(self, view: str) -> Batch:
        """The batch with the inputs of a view."""
        if view == INPUT:
            return self.batch
        return dataclasses.replace(self.batch, input=self.view(view), teacher_logits=None)

    def answer(self, name: str, view: str = INPUT) -> Outputs:
        """What a network or teacher answers at a view; with the graph of a student that learns."""
        ref = Ref(name, view)
        if ref not in self.answers:
            self.answers[ref] = self._ask(ref)
        return self.answers[ref]

    def target(self, ref: Ref) -> Outputs:
        """The same as a target: without gradient, unless the teacher says otherwise."""
        found = self.answer(ref.name, ref.view)
        teacher = self.roles.teachers.get(ref.name)
        open_ended = teacher is not None and not teacher.detached
        return found if open_ended or ref.name in self.roles.frozen else detached(found)

    def noise(self, stream: str) -> torch.Generator:
        """A generator for this step, the same after a resume and different on every rank."""
        return self.roles.runtime.noise(stream, self.number)

    def _ask(self, ref: Ref) -> Outputs:
        roles, name = self.roles, ref.name
        if name in roles.teachers:
            return roles.teachers[name](self, ref.view)  # type: ignore[no-any-return]
        if name in roles.students:
            return self._ask_student(ref)
        x = self.view(ref.view)
        known = self.batch.teacher_logits
        if known is not None and ref == Ref("teacher") and not roles.frozen[name].taps:
            return Outputs(known)
        return roles.ask(name, x)

    def _ask_student(self, ref: Ref) -> Outputs:
        student, runtime = self.roles.students[ref.name], self.roles.runtime
        if ref.name in self.roles.branches:
            trunk, tap = self.roles.branches[ref.name]
            feature = self.answer(trunk, ref.view).features[tap]
            with runtime.autocast():
                return Outputs(full_precision(student.module.branch(feature)))  # type: ignore[operator]
        x = self.view(ref.view)
        if ref in self.roles.graded:
            with runtime.autocast():
                return student(x)  # type: ignore[no-any-return]
        # a cast made without a graph must not be what a later pass with one finds in the cache
        cached = torch.is_autocast_cache_enabled()
        with torch.no_grad(), runtime.autocast():
            torch.set_autocast_cache_enabled(False)
            try:
                return student(x)  # type: ignore[no-any-return]
            finally:
                torch.set_autocast_cache_enabled(cached)


def detached(outputs: Outputs) -> Outputs:
    """The same answers without gradient."""
    if not outputs.logits.requires_grad:
        return outputs
    features = {name: x.detach() for name, x in outputs.features.items()}
    return Outputs(outputs.logits.detach(), features, outputs.statistics)
