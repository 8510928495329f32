"""Transfer losses around the rectifier: on which units are active, and the features before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import STAGES, Side, Taps, TransferLoss
from distillers.connector import Connector
from models.classifier import Outputs
from models.features import comparable


class ActivationBoundary(TransferLoss):
    """3/1000 · Σ_i 2^(i−n+1) · L_i over taps i = 0 … n−1 (AB, Heo et al., AAAI 2019, eq. 5).

    L_i, the batch's mean of the sum over units, is (s + μ)² where the teacher is inactive
    (t ≤ 0) but s > −μ, (s − μ)² where the teacher is active but s ≤ μ, and 0 elsewhere. Factors
    and stage weights are those of the authors' and the field's code. In the paper this alone is
    minimised for the first epochs, to initialise the student; here a ``schedule`` ends it.

    The loss compares responses before the rectifier. A teacher's tap after its ReLU works too, as
    inactive units are 0. A student's tap after a ReLU does not, as a unit that is off gets no
    gradient; so such a student goes through a connector, a 1×1 convolution with BatchNorm, as does
    one with other channels than the teacher. Otherwise units are compared as they are. To compare
    them before the ReLU in both, tap the modules before it, such as
    ``{student: stage2.4, teacher: stage2.4}``.

    Args:
        taps: features of any kind; of two maps the larger is average-pooled to the smaller.
        margin: μ > 0.

    Raises:
        ValueError: for a margin that is not positive.
    """

    def __init__(self, taps: Taps = STAGES, margin: float = 1.0) -> None:
        super().__init__(taps)
        if margin <= 0:
            raise ValueError(f"margin must be above 0, but is {margin}")
        self.margin = float(margin)
        self.connectors = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        self.connectors = nn.ModuleList(
            Connector(s, t, always=bool((s >= 0).all()))
            for s, t in self.pairs(student.outputs, teacher.outputs)
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pairs = self.pairs(student, teacher)
        if self.connectors:
            both = zip(self.connectors, pairs, strict=True)
            pairs = [connector(s, t) for connector, (s, t) in both]
        else:
            pairs = [comparable(s, t) for s, t in pairs]
        return 3e-3 * later_counts_more([self._crossing(s, t) for s, t in pairs])

    def _crossing(self, s: Tensor, t: Tensor) -> Tensor:
        active = t > 0
        # (s − μ)² and (s + μ)² of the units on the wrong side of their margin; [B]
        short = torch.where(active, self.margin - s, self.margin + s).clamp_min(0)
        return short.square().sum() / len(s)


class OFD(TransferLoss):
    """Σ_i 2^(i−n+1) · d_p(σ_m(F_t), r(F_s)) over taps i = 0 … n−1 (Heo et al., ICCV 2019).

    "A Comprehensive Overhaul of Feature Distillation", eq. 1 to 6. The teacher's features from
    before its ReLU pass the margin ReLU σ_m(x) = max(x, m), and the partial L2 distance d_p, the
    batch's mean of the sum over units, skips units without information: those with target ≤ 0 and
    the student below it. The student goes through a connector r, a 1×1 convolution with BatchNorm.
    The authors' factor of 1/1000 is the weight.

    A channel's margin m is the expectation of its negative responses. The authors compute it from
    the BatchNorm before the tap, taking responses for Gaussian; here it is measured, as a running
    mean over the inputs that the source makes. That needs no BatchNorm and holds after a residual
    sum; the first batches' margins are noisier.

    In most networks stages end in their ReLU, and then margins are 0. The paper's taps are modules
    before a ReLU, in both networks: ``stage2.4`` in ``DigitsCNN``, the last ``bn2`` of a stage in
    a ResNet. In a ``WideResNet`` they are those that read a stage, ``block3.layer.0.bn1`` after
    the second and ``bn1`` after the third.

    Args:
        taps: features of any kind; of two maps the larger is average-pooled to the smaller.
    """

    def __init__(self, taps: Taps = STAGES) -> None:
        super().__init__(taps)
        self.connectors = nn.ModuleList()
        self.rectifiers = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        pairs = self.pairs(student.outputs, teacher.outputs)
        connectors = [Connector(s, t, always=True) for s, t in pairs]
        self.connectors = nn.ModuleList(connectors)
        self.rectifiers = nn.ModuleList(MarginReLU(c.adapter.channels[1]) for c in connectors)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        modules = zip(self.connectors, self.rectifiers, strict=True)
        losses = []
        for (connector, rectifier), pair in zip(modules, self.pairs(student, teacher), strict=True):
            s, t = connector(*pair)
            losses.append(partial_l2(s, rectifier(t)))
        return later_counts_more(losses)


class MarginReLU(nn.Module):
    """max(x, m) with m [C] the running mean of each channel's negative values; x is [B, C, N].

    Both the negative values' sum and their number are averaged over batches, so m is right from
    the first batch on. A channel without negative values has m = 0.
    """

    MOMENTUM = 0.1

    negative: Tensor
    share: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("negative", torch.zeros(channels))
        self.register_buffer("share", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.negative.lerp_(x.clamp_max(0).mean((0, 2)).to(self.negative), self.MOMENTUM)
                self.share.lerp_((x < 0).to(self.share).mean((0, 2)), self.MOMENTUM)
        tiny = torch.finfo(self.share.dtype).tiny
        return torch.maximum(x, (self.negative / self.share.clamp_min(tiny))[:, None])


def partial_l2(student: Tensor, target: Tensor) -> Tensor:
    """OFD's eq. 2: Σ (s − t)² where s > t or t > 0, summed over units, mean over the batch."""
    counts = (student > target) | (target > 0)
    difference = torch.where(counts, student - target, 0)
    return difference.square().sum() / len(student)


def later_counts_more(losses: list[Tensor]) -> Tensor:
    """Σ_i 2^(i−n+1) · L_i: the last of n has weight 1, each earlier one half of the next."""
    return torch.stack([loss / 2**back for back, loss in enumerate(reversed(losses))]).sum()
