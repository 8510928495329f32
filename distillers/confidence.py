"""Features of several teachers, weighted by how right the student would be with each of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from distillers.channel import check_head
from distillers.combinations import others_share
from models.classifier import Outputs
from models.features import channels, comparable, to_map, to_vector


class ConfidentHints(TransferLoss):
    """mean_b Σ_k w_k(b) · mean (r_k(F_s) − F_k)² over K teachers (CA-MKD, ICASSP 2022, eq. 6 to 8).

    r_k, a 1×1 convolution without bias, BatchNorm and, where the teacher's feature has one, a
    rectifier, takes the student's map to teacher k's channels. The weights are w_k = (1 −
    softmax_k(c_k))/(K − 1), which sum to 1, where c_k is the cross-entropy of teacher k's last
    layer on the average of r_k(F_s): a teacher counts for more on an input where the student's
    feature, in its place, gives the right class. The first teacher is the loss's ``teacher``, the
    others are named under ``reads``::

        camkd_features:
          weight: 16.7
          reads: {second: second, third: third}
          loss: {_target_: distillers.confidence.ConfidentHints}

    The weights are constants. In the authors' code (Zhang, Chen and Wang) the gradient passes
    through them, which also rewards a feature for being wrong where it fits badly. There the sum is
    divided by K too: their weight of 50 with three teachers is 16.7 here. Of two maps the larger is
    average-pooled to the smaller.

    Args:
        taps: one, the last map [B, C, H, W], or tokens, of the student and of each teacher, whose
            average the teacher's last linear layer reads.

    Raises:
        ValueError: for more than one tap, fewer than two teachers, or a teacher whose last layer
            reads anything else.
    """

    needs_label = True

    def __init__(self, taps: Taps = ("stage-1",)) -> None:
        super().__init__(taps)
        if len(self.taps) != 1:
            raise ValueError(f"ConfidentHints reads one tap, but has {len(self.taps)}")
        self.connectors = nn.ModuleDict()
        self.others: Mapping[str, Side] = {}
        self.heads: dict[str, nn.Linear | None] = {}  # no part of the loss's state

    def prepare_reads(self, reads: Mapping[str, Side]) -> None:
        if not reads:
            raise ValueError(
                "ConfidentHints weighs several teachers: name the others under reads: {NAME: NAME}"
            )
        self.others = reads

    def prepare(self, student: Side, teacher: Side) -> None:
        width = channels(to_map(student.outputs.features[self.student_taps[0]]))
        for name, side in {"teacher": teacher, **self.others}.items():
            tap = self._tap(name)
            check_head(side, tap, name, "ConfidentHints")
            feature = to_map(side.outputs.features[tap])
            out = channels(feature)
            last = nn.ReLU() if bool((feature >= 0).all()) else nn.Identity()
            layers = (nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out), last)
            self.connectors[name] = nn.Sequential(*layers)
            self.heads[name] = side.head
        self.others = {}

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch, **reads: Outputs) -> Tensor:
        assert batch.label is not None
        ours = to_map(student.features[self.student_taps[0]])
        wrong, gaps = [], []
        for name, outputs in {"teacher": teacher, **reads}.items():
            connected = self.connectors[name](ours)
            head = self.heads[name]
            assert head is not None
            with torch.no_grad():
                said = F.linear(to_vector(connected), head.weight, head.bias)
                wrong.append(F.cross_entropy(said, batch.label, reduction="none"))
            s, t = comparable(connected, to_map(outputs.features[self._tap(name)]))
            gaps.append((s - t).square().flatten(1).mean(dim=1))
        weights = others_share(torch.stack(wrong, dim=1).softmax(dim=1))
        return (weights * torch.stack(gaps, dim=1)).sum(dim=1).mean()

    def _tap(self, name: str) -> str:
        return self.teacher_taps[0] if name == "teacher" else self.read_taps[name][0]
