"""What a synthesis term sees, and what a source is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from data.spec import Batch
from models.classifier import Outputs


@dataclass
class Synthesis:
    """One generated batch as the terms of a synthesis objective see it.

    Args:
        images: [B, *shape] in the specification's range, with gradient to what made them.
        teacher: the teacher's outputs on them, with the taps and statistics that terms ask for.
        student: the student's outputs, only where a term asks for them.
        label: [B] int64, the class that was aimed at, or None.
    """

    images: Tensor
    teacher: Outputs
    student: Outputs | None = None
    label: Tensor | None = None


class SynthesisTerm(nn.Module):
    """A scalar that synthesis minimises: ``forward(synthesis) -> Tensor`` of shape [].

    Attributes:
        taps: the teacher's taps that the term reads.
        needs_statistics: whether it reads the teacher's BatchNorm statistics.
        needs_student: whether it reads the student's outputs.
        needs_label: whether inputs are synthesized for given classes.
    """

    taps: tuple[str, ...] = ()
    needs_statistics = False
    needs_student = False
    needs_label = False

    def forward(self, synthesis: Synthesis) -> Tensor:
        raise NotImplementedError


class Source(Protocol):
    """Makes the batches that a student learns from: a synthesizer or a real data set."""

    def next(self) -> Batch:
        """The next batch; a synthesizer first updates itself when its schedule says so."""

    def report(self) -> dict[str, Tensor | float]:
        """Weighted terms of the latest update (detached device scalars) and learning rates."""

    def counts(self) -> dict[str, int]:
        """images_synthesized, teacher_queries, real_training_inputs_read, on this rank so far."""

    def state_dict(self) -> dict[str, Any]:
        """All that resume needs: tensors, numbers, strings and containers of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
