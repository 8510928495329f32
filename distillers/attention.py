"""Transfer terms on where a network looks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data.spec import Batch
from distillers.base import TransferTerm
from models.classifier import Outputs


class AttentionTransfer(TransferTerm):
    """Σ_taps mean (Q_s − Q_t)² with Q ∝ mean_c |F_c|^p (Zagoruyko and Komodakis, ICLR 2017).

    The paper's activation-based loss, as the mean square that the field computes rather than a
    norm. Q [B, H·W] has unit L2 norm per input, so neither a feature's scale nor its channel count
    matters. Where the two maps differ in size, the larger is average-pooled to the smaller.

    Args:
        taps: of both networks, each of features [B, C, H, W].
        student_taps: the student's, where they differ from ``taps``.
        teacher_taps: the teacher's, likewise; paired with the student's in order.
        p: exponent, at least 1.

    Raises:
        ValueError: where the taps do not pair up, or a feature is not a map.
    """

    def __init__(
        self,
        taps: Sequence[str] = ("stage1", "stage2", "stage3"),
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        p: float = 2.0,
    ) -> None:
        super().__init__()
        self.student_taps = tuple(taps if student_taps is None else student_taps)
        self.teacher_taps = tuple(taps if teacher_taps is None else teacher_taps)
        if len(self.student_taps) != len(self.teacher_taps) or not self.student_taps:
            raise ValueError(
                "attention transfer pairs one student tap with one teacher tap, but has "
                f"{list(self.student_taps)} and {list(self.teacher_taps)}"
            )
        if p < 1:
            raise ValueError(f"p must be at least 1, but is {p}")
        self.p = float(p)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        pairs = zip(self.student_taps, self.teacher_taps, strict=True)
        return torch.stack(
            [self._distance(student.features[s], teacher.features[t]) for s, t in pairs]
        ).sum()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.dim() != 4 or teacher.dim() != 4:
            raise ValueError(
                "attention transfer needs feature maps [B, C, H, W], but its taps give "
                f"{list(student.shape)} and {list(teacher.shape)}: choose earlier taps"
            )
        height, width = (
            min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True)
        )
        size = (height, width)
        return F.mse_loss(self._map(student, size), self._map(teacher, size))

    def _map(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        if feature.shape[2:] != size:
            feature = F.adaptive_avg_pool2d(feature, size)
        return F.normalize(feature.abs().pow(self.p).mean(dim=1).flatten(1), dim=1)
