"""A transfer loss on activations of a network of another modality."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.spec import Batch
from distillers.adapters import Adapter
from distillers.base import Side, Taps, TransferLoss
from models.classifier import Outputs


class Hallucination(TransferLoss):
    """Σ_taps Σ (σ(F_s) − σ(F_t))², summed over a feature and averaged over the batch.

    Modality hallucination (Hoffman et al., CVPR 2016, eq. 1), with which Garcia et al. (ECCV 2018)
    train a network that takes the place of a second modality: the sigmoid σ bounds what a single
    activation counts. They have one architecture for both networks; where features differ in shape,
    an adapter brings the student's to the teacher's before σ.

    Args:
        taps: features of any kind.
    """

    def __init__(self, taps: Taps = ("stage-1",)) -> None:
        super().__init__(taps)
        self.adapters = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        pairs = self.pairs(student.outputs, teacher.outputs)
        self.adapters = nn.ModuleList(Adapter(s, t) for s, t in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for adapter, pair in zip(self.adapters, self.pairs(student, teacher), strict=True):
            s, t = adapter(*pair)
            losses.append((s.sigmoid() - t.sigmoid()).square().flatten(1).sum(1).mean())
        return torch.stack(losses).sum()
