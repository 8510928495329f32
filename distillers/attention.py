"""Transfer losses on where a network looks: its spatial attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from data.spec import Batch
from distillers.base import STAGES, Taps, TransferLoss
from distillers.connector import maps
from models.classifier import Outputs


class AttentionTransfer(TransferLoss):
    """Σ_taps mean (Q_s − Q_t)² with Q ∝ mean_c |F_c|^p (Zagoruyko and Komodakis, ICLR 2017).

    The paper's activation-based loss, as the mean square that the field computes rather than a
    norm. Q [B, H·W] has unit L2 norm per input, so neither a feature's scale nor its channel count
    matters. Where the two maps differ in size, the larger is average-pooled to the smaller.
    Nothing is learned.

    Args:
        taps: maps [B, C, H, W] or tokens.
        p: exponent, at least 1.

    Raises:
        ValueError: for an exponent below 1, or a feature that is not a map.
    """

    def __init__(self, taps: Taps = STAGES, p: float = 2.0) -> None:
        super().__init__(taps)
        if p < 1:
            raise ValueError(f"p must be at least 1, but is {p}")
        self.p = float(p)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        distances = []
        for pair in self.pairs(student, teacher):
            s, t = map(self._map, maps(*pair))
            distances.append(F.mse_loss(s, t))
        return torch.stack(distances).sum()

    def _map(self, feature: Tensor) -> Tensor:
        return F.normalize(feature.abs().pow(self.p).mean(dim=1).flatten(1), dim=1)
