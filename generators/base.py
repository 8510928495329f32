"""The interfaces of synthesis losses, of synthesizers and of sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from core.annotations import check_needs
from core.objective import Losses
from data.spec import Batch
from generators.networks import GeneratorNetwork
from models.classifier import Outputs

Targets = Callable[[Tensor, torch.Generator], Tensor]
"""Classes [B] and a generator to soft targets [B, C]."""

Ask = Callable[[Tensor], Tensor]
"""Inputs [B, *shape] to the teacher's logits [B, C], without gradient."""


@dataclass
class Synthesis:
    """One generated batch as the losses of a synthesis objective see it.

    Args:
        images: [B, *shape] in the specification's range, differentiable.
        teacher: the teacher's outputs on them, with the taps and statistics that losses ask for.
        student: the student's outputs, only where a loss asks for them.
        label: [B] int64, the class that was aimed at, or None.
        latent: [B, latent_size], what a generator made the images from, or None.
        target: [B, C], the softmax that was aimed at, or None.
        local: the teacher's outputs on a second, local view of the images, only where a loss
            asks for it.
    """

    images: Tensor
    teacher: Outputs
    student: Outputs | None = None
    label: Tensor | None = None
    latent: Tensor | None = None
    target: Tensor | None = None
    local: Outputs | None = None


class SynthesisLoss(nn.Module):
    """A scalar that synthesis minimises: ``forward(synthesis) -> Tensor`` of shape [].

    Attributes:
        teacher_taps: the teacher's taps that the loss reads.
        student_taps: the student's.
        needs_statistics: whether it reads the teacher's BatchNorm statistics.
        needs_student: whether it reads the student's outputs.
        needs_label: whether inputs are synthesized for given classes.
        needs_local: whether it reads the teacher's outputs on a second, local view.
        note: what a user should know of it in this run; said once, at the start.
        remembers_best: whether :meth:`commit` gets those inputs of a round that it keeps, whose
            objective was the lowest, and not its last ones.

    A loss may own parameters (a projection head, a decoder): the source that calls it trains
    them beside its own. A loss with a memory of earlier inputs writes to it in :meth:`commit`
    alone.
    """

    teacher_taps: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()
    needs_statistics = False
    needs_student = False
    needs_label = False
    needs_local = False
    remembers_best = False
    note = ""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        check_needs(cls, SynthesisLoss)

    def forward(self, synthesis: Synthesis) -> Tensor:
        raise NotImplementedError

    def commit(self, synthesis: Synthesis) -> None:
        """Called without gradient, on every rank, once inputs are finished: nothing by default."""


@dataclass
class Workload:
    """What a source will do in a run, as far as that is known beforehand.

    Args:
        answers: inputs for which it asks the teacher's answer.
        gradients: inputs for which it asks the teacher's answer and gradient.
        known_batches: of the student's batches, those that bring the answers with them.
        updates: iterations of rounds, or updates before the first batch, which take time besides
            the student's steps.
    """

    answers: int = 0
    gradients: int = 0
    known_batches: int = 0
    updates: int = 0

    def __add__(self, other: Workload) -> Workload:
        return Workload(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, count: int) -> Workload:
        """So many times the work."""
        return Workload(*(count * a for a in astuple(self)))


@dataclass
class Made(Batch):
    """The inputs of one update of a synthesizer, without gradient.

    Args:
        features: for these inputs, the outputs of the layers that are watched, in their order.
    """

    features: Sequence[Tensor] = ()


class Synthesizer(Protocol):
    """Makes inputs from a teacher.

    Attributes:
        size: inputs of an update, on each rank.
        generator: a network that makes them and lasts from update to update, or None.
        answers: whether updates return the teacher's answers to their inputs.
    """

    size: int
    answers: bool
    generator: GeneratorNetwork | None

    def update(
        self, progress: float, student_knows: bool = True, iterations: int | None = None
    ) -> Made:
        """Improve what it makes inputs with, and return what it made last or best.

        Args:
            progress: share of the run done, in [0, 1), for schedules.
            student_knows: False while the student has learned nothing yet, which leaves out the
                losses that read it.
            iterations: of a round, in place of its own number: for timing.

        Raises:
            Stopped: if the run is asked to stop in a long update; the object is then as it was.
        """

    def watch(self, layers: Sequence[nn.Module]) -> None:
        """Record what these layers of the generator give in updates, as ``Made.features``."""

    def plan(self) -> Workload:
        """The work of one update; see :class:`Workload`."""

    def report(self) -> dict[str, Tensor | float]:
        """Weighted losses of the latest update (detached device scalars) and learning rates."""

    def counts(self) -> dict[str, int]:
        """images_synthesized by its updates on this rank, and what its losses have read."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Drawing(Protocol):
    """A synthesizer that also makes inputs between its updates."""

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        """New inputs [size, *shape] without gradient, with the classes aimed at, if any."""


@runtime_checkable
class Planner(Protocol):
    """A source that asks a teacher itself, and can say how often."""

    def plan(self, steps: int) -> Workload:
        """The work for a number of batches on one rank; an upper bound."""


@runtime_checkable
class Practising(Planner, Protocol):
    """A source whose plan has updates, which are timed apart from its batches.

    Attributes:
        in_rounds: whether synthesis comes in rounds, which a run makes whole or not at all.
    """

    in_rounds: bool

    def practice(self, updates: int) -> int:
        """Do at most so many of ``plan``'s updates, for timing; returns how many.

        The batches after them are drawn as if all had been made. Afterwards the object is for
        timing only.
        """


class Source(Protocol):
    """Makes the batches that a student learns from: a synthesizer or a real data set.

    Attributes:
        period: batches after which its work repeats, such as those between two updates.
    """

    period: int

    def next(self) -> Batch:
        """The next batch; a synthesizer first updates itself when its schedule says so."""

    def learned(self, batch: Batch, losses: Losses) -> None:
        """The student has taken its step on the latest batch."""

    def report(self) -> dict[str, Tensor | float]:
        """Weighted losses of the latest update (detached device scalars) and learning rates."""

    def counts(self) -> dict[str, int]:
        """images_synthesized and real_training_inputs_read, on this rank so far.

        If images of a data set other than the teacher's are used, out_of_domain_inputs_read too.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs: tensors, numbers, strings and containers of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
