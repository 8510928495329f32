"""The graph between a batch's inputs in each layer, and how it changes between layers."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from data.spec import Batch
from distillers.base import Taps, TransferLoss
from distillers.relation import squared_distances
from models.classifier import Outputs
from models.features import channels, comparable, to_map


class IRG(TransferLoss):
    """vertex·L_V + edge·L_E + transform·L_T (Liu et al., Instance Relationship Graph, CVPR 2019).

    L_V = mean (z_s − z_t)² of logits, the vertices. L_E = mean (A_s − A_t)², averaged over
    taps, where the edges A [B, B] are squared distances between the features of two inputs.
    L_T = Σ mean (λ_s − λ_t)² over consecutive taps that have places, where λ [B] is an input's
    squared distance from its own feature one tap before.

    The paper leaves open how distances of features of different sizes compare. As in the field's
    code, A and λ are divided by their largest entry; between two taps the larger map is
    average-pooled, and the larger number of channels averaged in groups. Nothing is learned, and
    what is compared between the networks has no width.

    Args:
        taps: features of any kind, in the order of the network.
        vertex, edge, transform: weights, at least 0; those of the field's code.

    Raises:
        ValueError: for a negative weight.
    """

    def __init__(
        self,
        taps: Taps = ("stage-2", "stage-1", "pooled"),
        vertex: float = 0.1,
        edge: float = 5.0,
        transform: float = 5.0,
    ) -> None:
        super().__init__(taps)
        if min(vertex, edge, transform) < 0:
            raise ValueError(
                "IRG's weights must be at least 0, but vertex, edge and transform are "
                f"{vertex}, {edge} and {transform}"
            )
        self.vertex, self.edge, self.transform = float(vertex), float(edge), float(transform)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pairs = self.pairs(student, teacher)
        loss = self.vertex * F.mse_loss(student.logits, teacher.logits)
        edges = [F.mse_loss(_edges(s), _edges(t)) for s, t in pairs]
        loss = loss + self.edge * torch.stack(edges).mean()
        for (s_in, t_in), (s_out, t_out) in pairwise(pairs):
            if min(s_in.dim(), t_in.dim(), s_out.dim(), t_out.dim()) > 2:
                step = F.mse_loss(_transformation(s_in, s_out), _transformation(t_in, t_out))
                loss = loss + self.transform * step
        return loss


def _edges(x: Tensor) -> Tensor:
    return _relative(squared_distances(x.flatten(1)))


def _transformation(first: Tensor, second: Tensor) -> Tensor:
    """λ [B] from a feature of one tap and that of the next."""
    a, b = comparable(to_map(first), to_map(second))
    width = min(channels(a), channels(b))
    a, b = (F.adaptive_avg_pool1d(x.flatten(2).transpose(1, 2), width) for x in (a, b))
    return _relative((a - b).flatten(1).square().sum(dim=1))


def _relative(x: Tensor) -> Tensor:
    return x / x.amax().clamp_min(1e-12)
