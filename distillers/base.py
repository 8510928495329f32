"""What a transfer term is."""

from __future__ import annotations

from torch import Tensor, nn

from data.spec import Batch
from models.classifier import Outputs


class TransferTerm(nn.Module):
    """A scalar that the student minimises: ``forward(student, teacher, batch) -> Tensor``.

    Attributes:
        student_taps: the student's taps that the term reads.
        teacher_taps: the teacher's.
        needs_teacher: whether it reads the teacher's outputs at all.
        needs_label: whether it reads ``batch.label``.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    needs_teacher = True
    needs_label = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        raise NotImplementedError
