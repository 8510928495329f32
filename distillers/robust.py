"""Transfer losses on attacked inputs.

ARD (Goldblum et al., AAAI 2020) and RSLAD (Zi et al., ICCV 2021) need none of their own: they are
:class:`~distillers.response.KD` whose student is seen at an attack's view.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.functional import kl_divergences
from data.spec import Batch
from distillers.base import TransferLoss
from models.classifier import Outputs


class TRADES(TransferLoss):
    """KL(softmax(s(x)) ‖ softmax(s(x'))), batch mean (Zhang et al., ICML 2019; the authors'
    code puts the KL in the place of the paper's surrogate loss).

    The gradient flows through both answers. Beside a cross-entropy at the clean input its weight is
    β = 1/λ. The student's edge is the attacked input x', and it reads the clean one::

        student: student@attacked
        reads: {clean: student}
    """

    needs_teacher = False

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, clean: Outputs
    ) -> Tensor:
        """The student's logits [B, C] at x', and ``clean``, its own at x."""
        return kl_divergences(student.logits, clean.logits).mean()


class IAD(TransferLoss):
    """mean (1 − a)·KL(softmax(s(x)) ‖ softmax(s(x'))), a = p_t(x')[y]^β (Zhu et al., ICLR 2022):
    the student trusts itself where the teacher fails on the attacked input.

    This is the introspective part of IAD-I; the other part is KD of student@attacked ← teacher with
    τ = 1. As in the authors' code, that part is not weighted by a, and the gradient flows through
    both of the student's answers. Both edges are at the attacked input x', and the student's clean
    answer is read::

        student: student@attacked
        teacher: teacher@attacked
        reads: {clean: student}

    Args:
        beta: β ≥ 0, which sharpens the teacher's probability; 0 switches the loss off.

    Raises:
        ValueError: for a β below 0.
    """

    needs_label = True

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        if beta < 0:
            raise ValueError(f"beta must be at least 0, but is {beta}")
        self.beta = float(beta)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch, clean: Outputs) -> Tensor:
        """Logits [B, C] of the student and the teacher at x', and ``clean``, the student's at x."""
        assert batch.label is not None
        log_p = torch.log_softmax(teacher.logits, dim=1).gather(1, batch.label[:, None])[:, 0]
        trust = -torch.expm1(self.beta * log_p)  # 1 − p^β
        return (trust * kl_divergences(student.logits, clean.logits)).mean()
