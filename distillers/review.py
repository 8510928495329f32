"""Knowledge review: each of the teacher's stages also teaches the student's later stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from models.classifier import Outputs
from models.features import channels, pool_to, to_map

LEVELS = (4, 2, 1)  # sides of the pooled maps, as in the authors' code
WIDEST = 512  # channels in which stages are fused


def hierarchical_context_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """HCL: Σ_i Σ_l w_l·mean (pool_l F_s − pool_l F_t)² / Σ_l w_l over maps [B, C, H, W].

    l runs over the whole map, with weight 1, and over those of 4×4, 2×2 and 1×1 places that are
    smaller than it, each at half the weight of the one before (Chen et al., CVPR 2021, sec. 3.4).
    """
    return torch.stack([_pyramid(s, t) for s, t in zip(students, teachers, strict=True)]).sum()


def _pyramid(student: Tensor, teacher: Tensor) -> Tensor:
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for side in LEVELS:
        height, width = student.shape[2:]
        if side < max(height, width):  # a line has one row
            weight /= 2
            total += weight
            size = min(side, height), min(side, width)
            a, b = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
            loss = loss + weight * F.mse_loss(a, b)
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion (ABF): a stage joined with the fusion of the deeper ones.

    Args:
        student: channels of the student's stage.
        width: in which stages are fused.
        teacher: channels of the teacher's stage.
        deepest: whether there is no deeper stage.
    """

    def __init__(self, student: int, width: int, teacher: int, deepest: bool) -> None:
        super().__init__()
        self.inward = _normalized(nn.Conv2d(student, width, 1, bias=False))
        self.outward = _normalized(nn.Conv2d(width, teacher, 3, padding=1, bias=False))
        self.attention = None if deepest else nn.Conv2d(2 * width, 2, 1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The feature to compare with the teacher's stage, and the next shallower stage's input."""
        x = self.inward(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            gate = self.attention(torch.cat([x, deeper], dim=1)).sigmoid()
            x = x * gate[:, :1] + deeper * gate[:, 1:]
        return self.outward(x), x


class ReviewKD(TransferLoss):
    """HCL between the teacher's stages and the student's fused ones (Chen et al., CVPR 2021).

    From the deepest stage to the first, :class:`Fusion` joins a stage of the student with the
    fusion of all deeper ones, and its projection is compared with the teacher's stage. The pooled
    features are the deepest stage, a map of one place, as in the authors' code. Where two maps
    differ in size the larger is average-pooled to the smaller; the authors enlarge the student's.
    The teacher's stages are read after the last rectifier; the authors' code reads them before it,
    which taps by module path can do if a module ends there.

    Args:
        taps: from the first stage on; maps, tokens, or vectors.
    """

    def __init__(self, taps: Taps = ("stages", "pooled")) -> None:
        super().__init__(taps)
        self.fusions = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        pairs = self.pairs(student.outputs, teacher.outputs)
        width = min(WIDEST, channels(_as_map(pairs[-1][0])))
        last = len(pairs) - 1
        self.fusions = nn.ModuleList(
            Fusion(channels(_as_map(s)), width, channels(_as_map(t)), i == last)
            for i, (s, t) in enumerate(pairs)
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pairs = self.pairs(student, teacher)
        fused, targets, deeper = [], [], None
        for fusion, (s, t) in zip(reversed(self.fusions), reversed(pairs), strict=True):
            made, deeper = fusion(_as_map(s), deeper)
            target = _as_map(t)
            height, width = (min(x) for x in zip(made.shape[2:], target.shape[2:], strict=True))
            fused.append(pool_to(made, (height, width)))
            targets.append(pool_to(target, (height, width)))
        return hierarchical_context_loss(fused, targets)


def _as_map(x: Tensor) -> Tensor:
    return x[:, :, None, None] if x.dim() == 2 else to_map(x)


def _normalized(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))
