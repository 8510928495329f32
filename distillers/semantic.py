"""Transfer losses that learn which teacher layer teaches which student layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import STAGES, Side, Taps, TransferLoss
from distillers.connector import maps
from models.classifier import Outputs
from models.features import channels, pool_to, to_map, to_vector


class SemCKD(TransferLoss):
    """mean_b 1/S · Σ_ij α_ij · mean (r_ij(F_s,i) − F_t,j)², α_i = softmax_j(q_iᵀ k_j).

    Cross-layer distillation with semantic calibration (Chen et al., AAAI 2021, eq. 4 to 8), over
    all pairs of the S student and the T teacher layers among the taps. An input's query and key
    [B, dim], of unit L2 norm, come from its similarities F F_refᵀ to the first ``batch_size``
    inputs of the batch, through two linear layers for each layer of a network. r_ij are
    convolutions, 1×1, 3×3 and 1×1, of twice the teacher's channels. Of two maps the larger is
    average-pooled to the smaller.

    In the authors' code ``dim`` is a quarter of the batch. A smaller batch is padded with zeros;
    under DDP each rank sees its own.

    Args:
        batch_size: columns of the similarity matrices.
        taps: maps [B, C, H, W] or tokens; a layer named twice counts once.
        dim: of queries and keys.

    Raises:
        ValueError: for a size below 1.
    """

    def __init__(self, batch_size: int, taps: Taps = STAGES, dim: int = 16) -> None:
        super().__init__(taps)
        if min(batch_size, dim) < 1:
            raise ValueError(f"batch_size and dim must be at least 1, not {batch_size} and {dim}")
        self.batch_size, self.dim = batch_size, dim
        self.queries = nn.ModuleList()
        self.keys = nn.ModuleList()
        self.projections = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        ours, theirs = _layers(self, student.outputs, teacher.outputs)
        self.queries = nn.ModuleList(_embedding(self.batch_size, self.dim) for _ in ours)
        self.keys = nn.ModuleList(_embedding(self.batch_size, self.dim) for _ in theirs)
        self.projections = nn.ModuleList(
            nn.ModuleList(_projection(channels(s), channels(t)) for t in theirs) for s in ours
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = _layers(self, student, teacher)
        queries, keys = (
            torch.stack([self._embed(*pair) for pair in zip(modules, layers, strict=True)], dim=1)
            for modules, layers in ((self.queries, ours), (self.keys, theirs))
        )
        attention = (queries @ keys.transpose(1, 2)).softmax(dim=2)
        distances = [
            _squared_distance(project, s, t)
            for row, s in zip(self.projections, ours, strict=True)
            for project, t in zip(row, theirs, strict=True)  # type: ignore[call-overload]
        ]
        return (attention.flatten(1) * torch.stack(distances, dim=1)).sum() / queries[
            ..., 0
        ].numel()

    def _embed(self, embedding: nn.Module, feature: Tensor) -> Tensor:
        """Query or key [B, dim] of each input at one layer."""
        x = feature.flatten(1)
        similarities = x @ x[: self.batch_size].T
        missing = self.batch_size - similarities.shape[1]
        return F.normalize(embedding(F.pad(similarities, (0, missing))), dim=1)


class AFD(TransferLoss):
    """mean_b Σ_t Σ_s α_ts · mean (e(F_s) − e(F_t))², e the spatial energy of unit L2 norm.

    Attention-based feature-level distillation (Ji, Heo and Park, AAAI 2021, eq. 2 to 6). For each
    teacher layer t the attention is over the student layers s among the taps,
    α_t = softmax_s((q_tᵀ W_t k_s + p_tᵀ p_s) / √dim), with the query q from the channel means of
    the teacher, the key k from those of the student (a linear layer with BatchNorm each, the key
    rectified), learned positions p, and a bilinear weight W_t with BatchNorm. The energy e [H·W]
    is the mean square over channels, the student's average-pooled to the teacher's size, which
    repeats places where it is smaller. W's BatchNorm has no scale and shift: they cancel.

    BatchNorm wants batches of at least two inputs.

    Args:
        taps: maps [B, C, H, W] or tokens; a layer named twice counts once.
        dim: of queries and keys; the authors' 128.

    Raises:
        ValueError: for a dim below 1, or a feature that is not a map.
    """

    teacher_positions: nn.Parameter
    student_positions: nn.Parameter

    def __init__(self, taps: Taps = STAGES, dim: int = 128) -> None:
        super().__init__(taps)
        if dim < 1:
            raise ValueError(f"dim must be at least 1, but is {dim}")
        self.dim = dim
        self.queries = nn.ModuleList()
        self.keys = nn.ModuleList()
        self.bilinear = nn.Sequential()

    def prepare(self, student: Side, teacher: Side) -> None:
        ours, theirs = _layers(self, student.outputs, teacher.outputs)
        for t in theirs:
            self.queries.append(nn.Sequential(*self._normalized(channels(t), self.dim)))
        for s in ours:
            self.keys.append(nn.Sequential(*self._normalized(channels(s), self.dim), nn.ReLU()))
        width = self.dim * len(theirs)
        self.bilinear = nn.Sequential(*self._normalized(self.dim, width, affine=False))
        self.teacher_positions = nn.Parameter(torch.empty(len(theirs), self.dim))
        self.student_positions = nn.Parameter(torch.empty(len(ours), self.dim))
        nn.init.xavier_normal_(self.teacher_positions)
        nn.init.xavier_normal_(self.student_positions)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = _layers(self, student, teacher)
        attention = self._attention(ours, theirs)
        losses = []
        for i, t in enumerate(theirs):
            size = (t.shape[2], t.shape[3])
            energies = torch.stack([_energy(s, size) for s in ours], dim=1)
            distances = (energies - _energy(t, size)[:, None]).square().mean(dim=2)
            losses.append((attention[:, i] * distances).sum(dim=1).mean())
        return torch.stack(losses).sum()

    def _attention(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """α [B, T, S]; sums to 1 over the S student layers."""
        queries, keys = (
            torch.stack([m(to_vector(x)) for m, x in zip(modules, layers, strict=True)], dim=1)
            for modules, layers in ((self.queries, theirs), (self.keys, ours))
        )
        keys = self.bilinear(keys.flatten(0, 1)).unflatten(1, (len(theirs), self.dim))
        keys = keys.unflatten(0, (-1, len(ours)))
        agreement = torch.einsum("btd,bstd->bts", queries, keys)
        positions = self.teacher_positions @ self.student_positions.T
        return ((agreement + positions) / math.sqrt(self.dim)).softmax(dim=2)

    @staticmethod
    def _normalized(c_in: int, c_out: int, affine: bool = True) -> tuple[nn.Module, nn.Module]:
        return nn.Linear(c_in, c_out, bias=False), nn.BatchNorm1d(c_out, affine=affine)


def _layers(
    loss: TransferLoss, student: Outputs, teacher: Outputs
) -> tuple[list[Tensor], list[Tensor]]:
    """The maps at each network's taps, each once; refused where there are none."""
    loss.pairs(student, teacher)
    ours = [to_map(student.features[tap]) for tap in dict.fromkeys(loss.student_taps)]
    return ours, [to_map(teacher.features[tap]) for tap in dict.fromkeys(loss.teacher_taps)]


def _embedding(c_in: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(c_in, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))


def _projection(c_in: int, c_out: int) -> nn.Sequential:
    """SemCKD's r, from the student's channels to the teacher's."""
    width = 2 * c_out
    return nn.Sequential(
        nn.Conv2d(c_in, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, c_out, 1, bias=False),
    )


def _squared_distance(project: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """mean (r(F_s) − F_t)² of each input, [B]."""
    s, t = maps(student, teacher)
    return (project(s) - t).square().flatten(1).mean(dim=1)


def _energy(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean square over channels at ``size``, [B, H·W], of unit L2 norm."""
    return F.normalize(pool_to(feature.square().mean(1, keepdim=True), size).flatten(1), dim=1)
