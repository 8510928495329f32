"""Transfer losses on features themselves: hints, distributions, mutual information, flows."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.adapters import Adapter
from distillers.base import STAGES, Side, Taps, TransferLoss
from distillers.connector import Connector, maps, places
from models.classifier import Outputs
from models.features import channels, comparable, pool_to, to_map


class FitNet(TransferLoss):
    """Σ_taps mean (r(F_s) − F_t)², a hint to a middle layer (Romero et al., ICLR 2015, eq. 3).

    The regressor r is always a learned 1×1 convolution (a linear layer on tokens and vectors) with
    BatchNorm. The paper's convolution, without padding, also makes sizes equal; here the larger map
    is average-pooled. BatchNorm, and the mean in place of half a sum, come from the field's code,
    with its usual weight of 100; without BatchNorm, SGD diverges at that weight. The paper
    minimises the hint first and distils afterwards: a ``schedule`` that ends the hint is similar.

    Args:
        taps: features of any kind; the default is the last stage but one.
    """

    def __init__(self, taps: Taps = ("stage-2",)) -> None:
        super().__init__(taps)
        self.regressors = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        pairs = self.pairs(student.outputs, teacher.outputs)
        self.regressors = nn.ModuleList(Connector(s, t, always=True) for s, t in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        both = zip(self.regressors, self.pairs(student, teacher), strict=True)
        return torch.stack([F.mse_loss(*regressor(*pair)) for regressor, pair in both]).sum()


class NST(TransferLoss):
    """Σ_taps MMD² of the channels' activation patterns (Huang and Wang, 2017, eq. 5 and 7).

    mean k(f_t, f_t′) + mean k(f_s, f_s′) − 2 mean k(f_s, f_t), with the polynomial kernel
    k(a, b) = (aᵀb)². The means are over all pairs of channels of one input, and over the batch;
    each f is a channel's map [H·W] with unit L2 norm, so networks need not agree in channels.
    Of two maps the larger is average-pooled to the smaller; nothing is learned.

    Args:
        taps: maps [B, C, H, W] or tokens.
    """

    def __init__(self, taps: Taps = STAGES) -> None:
        super().__init__(taps)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return torch.stack([_mmd(*maps(s, t)) for s, t in self.pairs(student, teacher)]).sum()


class FSP(TransferLoss):
    """Σ_i mean (G_s − G_t)² of flows G = F_iᵀ F_{i+1} / (H·W) between consecutive taps, [C, C′].

    Yim et al., CVPR 2017, eq. 1 and 2; the mean over the batch and over G's entries, as in the
    field's code. Within a network the larger map is average-pooled to the smaller (the paper
    max-pools). Where the networks differ in channels, which the paper excludes, a 1×1 convolution
    with BatchNorm brings the student's to the teacher's. In the paper this alone is minimised
    first, to initialise the student; here a ``schedule`` ends it.

    Args:
        taps: two or more, maps [B, C, H, W] or tokens, in the order of the network.

    Raises:
        ValueError: if there is one tap only, which has no flow.
    """

    def __init__(self, taps: Taps = STAGES) -> None:
        super().__init__(taps)
        self.adapters = nn.ModuleList()
        self.norms = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        pairs = self.pairs(student.outputs, teacher.outputs)
        if len(pairs) < 2:
            raise ValueError(
                f"FSP compares flows between stages, but it has one tap, {self.student_taps[0]}: "
                "give taps=[...] two or more"
            )
        for s, t in pairs:
            adapter = Adapter(to_map(s), to_map(t))
            projects = not isinstance(adapter.projection, nn.Identity)
            self.adapters.append(adapter)
            self.norms.append(nn.BatchNorm2d(adapter.channels[1]) if projects else nn.Identity())

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pairs = [(to_map(s), to_map(t)) for s, t in self.pairs(student, teacher)]
        if self.adapters:  # channels alone: a flow's size does not depend on the maps'
            made = zip(self.adapters, self.norms, pairs, strict=True)
            pairs = [(norm(adapter.projection(s)), t) for adapter, norm, (s, t) in made]  # type: ignore[operator]
        return torch.stack(
            [
                F.mse_loss(_flow(s_in, s_out), _flow(t_in, t_out))
                for (s_in, t_in), (s_out, t_out) in pairwise(pairs)
            ]
        ).sum()


class VID(TransferLoss):
    """Σ_taps mean ½·((F_t − μ(F_s))²/σ² + log σ²) (Ahn et al., CVPR 2019, eq. 4 to 6).

    A bound on the mutual information, up to a constant, by a Gaussian around what the student
    predicts; it may be negative. The variance of each of the teacher's channels is
    σ² = softplus(α) + ε, and α is trained as μ is: three 1×1 convolutions of the teacher's width
    with rectifiers between them. Of two maps the larger is average-pooled to the smaller.

    Args:
        taps: features of any kind.
        variance: σ² at first, above 1e-5; the authors' 5.

    Raises:
        ValueError: for a variance out of range.
    """

    def __init__(self, taps: Taps = STAGES, variance: float = 5.0) -> None:
        super().__init__(taps)
        if variance <= Variational.EPSILON:
            raise ValueError(f"VID's first variance must be above 1e-5, but is {variance}")
        self.variance = float(variance)
        self.variational = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        pairs = self.pairs(student.outputs, teacher.outputs)
        widths = [(channels(s), channels(t)) for s, t in (comparable(*pair) for pair in pairs)]
        self.variational = nn.ModuleList(Variational(*width, self.variance) for width in widths)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        both = zip(self.variational, self.pairs(student, teacher), strict=True)
        return torch.stack([one(*map(places, comparable(*pair))) for one, pair in both]).sum()


class Variational(nn.Module):
    """−log q(F_t | F_s) of VID at one tap, up to a constant; features are [B, C, N]."""

    EPSILON = 1e-5

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv1d(student, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv1d(teacher, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv1d(teacher, teacher, 1, bias=False),
        )
        excess = variance - self.EPSILON
        inverse_softplus = excess + math.log(-math.expm1(-excess))  # finite for large values too
        self.raw_variance = nn.Parameter(torch.full((teacher, 1), inverse_softplus))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        variance = F.softplus(self.raw_variance) + self.EPSILON
        return ((teacher - self.mean(student)).square() / variance + variance.log()).mean() / 2


def _mmd(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (aᵀb)² over all pairs of rows of a [B, C, N] and b [B, C′, N]."""
    return (a @ b.transpose(1, 2)).square().mean()


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """G [B, C, C′] of maps [B, C, H, W] and [B, C′, H′, W′]."""
    height, width = (min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True))
    a, b = (pool_to(x, (height, width)).flatten(2) for x in (first, second))
    return a @ b.transpose(1, 2) / (height * width)
