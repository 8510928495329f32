"""Response losses with a weight for each input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.functional import kl_divergences
from data.spec import Batch
from distillers.base import TransferLoss
from distillers.response import positive
from models.classifier import Outputs


class WSLD(TransferLoss):
    """mean w·τ²·KL(softmax(t/τ) ‖ softmax(s/τ)), w = 1 − exp(−CE_s / CE_t) (Zhou et al., Weighted
    Soft Labels, ICLR 2021).

    The cross-entropies with the label are taken at τ = 1, and w [B] in [0, 1) is a constant to the
    gradient: soft labels count where the student is still behind the teacher. The authors have the
    cross-entropy with the teacher in place of the KL, which adds a value but no gradient.

    Args:
        temperature: τ > 0; the paper has 4 for CIFAR and 2 for ImageNet.
    """

    needs_label = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive(temperature)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert batch.label is not None
        weight = _weight(student.logits.detach(), teacher.logits, batch.label)
        kl = kl_divergences(student.logits / self.temperature, teacher.logits / self.temperature)
        return self.temperature**2 * (weight * kl).mean()


def _weight(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    of_student, of_teacher = (
        F.cross_entropy(logits, label, reduction="none") for logits in (student, teacher)
    )
    return -torch.expm1(-of_student / (of_teacher + 1e-7))
