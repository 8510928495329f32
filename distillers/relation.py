"""Transfer losses on relations: between the inputs of a batch, and between channels.

Relations are between the inputs of one process's batch; under DDP ranks do not see each other's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.spec import Batch
from distillers.adapters import Adapter
from distillers.base import Side, Taps, TransferLoss
from models.classifier import Outputs
from models.features import channels, comparable, to_map, to_vector

ANGLES = 2**24  # numbers in one piece of RKD's angles; more are computed in pieces


class SimilarityPreserving(TransferLoss):
    """Σ_taps ‖G_s − G_t‖²_F / B², G = F Fᵀ of flattened features with rows of unit L2 norm.

    SP (Tung and Mori, ICCV 2019). Nothing is learned, and shapes need not agree.

    Args:
        taps: features of any kind.
    """

    def __init__(self, taps: Taps = ("stage-1",)) -> None:
        super().__init__(taps)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for pair in self.pairs(student, teacher):
            s, t = (F.normalize(_gram(x.flatten(1)), dim=1) for x in pair)
            losses.append(F.mse_loss(s, t))
        return torch.stack(losses).sum()


class PKT(TransferLoss):
    """Σ_taps mean_ij p_t log(p_t / p_s), p(j | i) ∝ (1 + cos(f_i, f_j)) / 2 over j.

    Probabilistic Knowledge Transfer (Passalis and Tefas, ECCV 2018) with the cosine kernel. The
    mean over all B² pairs and the epsilon come from the authors' code.

    Args:
        taps: vectors [B, D]; of maps and tokens the average is taken.
    """

    EPSILON = 1e-7

    def __init__(self, taps: Taps = ("pooled",)) -> None:
        super().__init__(taps)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for pair in self.pairs(student, teacher):
            s, t = (self._neighbours(to_vector(x)) for x in pair)
            losses.append((t * ((t + self.EPSILON) / (s + self.EPSILON)).log()).mean())
        return torch.stack(losses).sum()

    def _neighbours(self, x: Tensor) -> Tensor:
        """p [B, B]; rows add up to 1."""
        unit = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + self.EPSILON)
        kernel = (_gram(unit) + 1) / 2
        return kernel / kernel.sum(dim=1, keepdim=True)


class RKD(TransferLoss):
    """Σ_taps distance·mean_ij ℓ(d_s, d_t) + angle·mean_ijk ℓ(cos_s, cos_t), ℓ Huber's with δ = 1.

    Relational Knowledge Distillation (Park et al., CVPR 2019): d are distances over their mean, cos
    that of the angle at i between j and k. All B³ angles are compared; if there are many, in pieces
    that the backward pass computes again, so that memory grows with B². An input that coincides
    with another has no direction from it: a distance of at most 1e-4 of an embedding's length
    counts as coincidence, 1e-12 in the authors' code.

    Args:
        taps: vectors [B, D]; of maps and tokens the average is taken.
        distance: weight of the distances.
        angle: weight of the angles.

    Raises:
        ValueError: for a weight below 0.
    """

    def __init__(
        self, taps: Taps = ("pooled",), distance: float = 25.0, angle: float = 50.0
    ) -> None:
        super().__init__(taps)
        if min(distance, angle) < 0:
            raise ValueError(f"distance and angle must be at least 0, not {distance} and {angle}")
        self.distance, self.angle = float(distance), float(angle)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for pair in self.pairs(student, teacher):
            s, t = map(to_vector, pair)
            distance = F.smooth_l1_loss(_relative_distances(s), _relative_distances(t))
            losses.append(self.distance * distance + self.angle * _angles(s, t))
        return torch.stack(losses).sum()


class CorrelationCongruence(TransferLoss):
    """Σ_taps mean_i Σ_d |δ_i,d|·|δ_i+1,d|, δ = f_s − f_t, over neighbours i in the batch.

    CC (Peng et al., ICCV 2019) as the field computes it, and as its usual weight of 0.02 belongs
    to: the paper compares kernel matrices of the batch instead. Where the widths differ, a linear
    layer brings the student's embedding to the teacher's; the field's code trains a layer on both
    sides, which can both shrink to nothing. A batch of one input has no neighbours and no loss.

    Args:
        taps: vectors [B, D]; of maps and tokens the average is taken.
    """

    def __init__(self, taps: Taps = ("pooled",)) -> None:
        super().__init__(taps)
        self.adapters = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        pairs = self.pairs(student.outputs, teacher.outputs)
        self.adapters = nn.ModuleList(Adapter(to_vector(s), to_vector(t)) for s, t in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for i, pair in enumerate(self.pairs(student, teacher)):
            s, t = map(to_vector, pair)
            if self.adapters:
                s, t = self.adapters[i](s, t)
            delta = (s - t).abs()
            losses.append((delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1))
        return torch.stack(losses).sum()


class ICKD(TransferLoss):
    """Σ_taps ‖G_s − G_t‖²_F / (B·C), G = F Fᵀ [B, C, C] of channels [B, C, H·W], rows of unit norm.

    Inter-Channel Correlation (Liu et al., ICCV 2021), its global form ICKD-C. A 1×1
    convolution with BatchNorm brings the student to the teacher's channels, always, as in the
    authors' code; of two maps the larger is average-pooled to the smaller.

    Args:
        taps: maps [B, C, H, W] or tokens.
    """

    def __init__(self, taps: Taps = ("stage-1",)) -> None:
        super().__init__(taps)
        self.embeddings = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        for s, t in self.pairs(student.outputs, teacher.outputs):
            s, t = comparable(to_map(s), to_map(t))
            c_out = channels(t)
            convolution = nn.Conv2d(channels(s), c_out, 1, bias=False)
            self.embeddings.append(nn.Sequential(convolution, nn.BatchNorm2d(c_out)))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for embed, (s, t) in zip(self.embeddings, self.pairs(student, teacher), strict=True):
            s, t = comparable(to_map(s), to_map(t))
            ours, theirs = (F.normalize(_gram(x.flatten(2)), dim=2) for x in (embed(s), t))
            losses.append((ours - theirs).square().sum(dim=2).mean())
        return torch.stack(losses).sum()


def squared_distances(x: Tensor) -> Tensor:
    """[B, B] between the rows of x [B, D]; the diagonal is exactly 0."""
    x = x - x.mean(dim=0)  # a common offset would cost precision
    square = x.square().sum(dim=1)
    distances = (square[:, None] + square - 2 * _gram(x)).clamp_min(0)
    return distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)


def _gram(x: Tensor) -> Tensor:
    return x @ x.transpose(-1, -2)


def _relative_distances(x: Tensor) -> Tensor:
    """Distances [B, B] over the mean of those between different inputs."""
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    distances = squared_distances(x).clamp_min(1e-12).sqrt().masked_fill(itself, 0)
    pairs = max(1, len(x) * (len(x) - 1))
    return distances / (distances.sum() / pairs).clamp_min(1e-12)


def _angles(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_ijk ℓ(cos_s, cos_t) of [B, D] and [B, D′]."""
    size = len(student)
    at_once = max(1, ANGLES // (size * max(size, student.shape[1], teacher.shape[1])))
    both = (student, teacher, _shortest(student), _shortest(teacher))
    if at_once >= size:
        return _angles_at(0, size, *both) / size**3
    pieces = [
        checkpoint(_angles_at, i, i + at_once, *both, use_reentrant=False, preserve_rng_state=False)
        for i in range(0, size, at_once)
    ]
    return torch.stack(pieces).sum() / size**3  # type: ignore[arg-type]


def _angles_at(
    start: int, stop: int, student: Tensor, teacher: Tensor, short_s: Tensor, short_t: Tensor
) -> Tensor:
    """The sum over the angles at inputs ``start`` to ``stop``."""
    ours, theirs = (
        _gram(_directions(x, x[start:stop], shortest))
        for x, shortest in ((student, short_s), (teacher, short_t))
    )
    return F.smooth_l1_loss(ours, theirs, reduction="sum")


def _shortest(x: Tensor) -> Tensor:
    """The length below which a difference between rows of x is rounding."""
    return 1e-4 * torch.linalg.vector_norm(x.detach(), dim=1).mean() + 1e-12


def _directions(x: Tensor, origin: Tensor, shortest: Tensor) -> Tensor:
    """Unit vectors [N, B, D] from each of N origins to each row of x; 0 where they coincide."""
    difference = x - origin[:, None]
    length = torch.linalg.vector_norm(difference, dim=2, keepdim=True)
    return difference / torch.maximum(length, shortest)
