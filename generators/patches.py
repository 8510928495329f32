"""A synthesis loss for teachers without BatchNorm: how much the patches of an input differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.base import Synthesis, SynthesisLoss
from models.classifier import Classifier
from models.features import pool_to, to_map
from models.taps import stage_taps

LARGEST = 14  # places to a side, as a ViT with patches of 16 pixels has


class PatchSimilarity(SynthesisLoss):
    """−Σ_taps mean_images H(f), H = −∫ f log f (L_PSE of PSAQ-ViT, Li et al., ECCV 2022).

    f is the Gaussian kernel density of the cosine similarities of every two patches of one image. A
    teacher's responses to a real image differ between foreground and background, and those to noise
    do not; so synthesis maximises the differential entropy H. The teacher need not store anything
    of the training data, so networks with LayerNorm or GroupNorm will do.

    The authors read the heads' averaged attention of all layers, with a bandwidth of 0.01 and ten
    places of f. Here it is the tokens or maps of the stages, which every network has, f is
    integrated over all of [−1, 1] and its tails in steps of a bandwidth, and no patch is compared
    to itself. Maps of more than 14 × 14 places are average-pooled to that.

    Args:
        teacher: whose stages are read, where no taps are named.
        taps: maps [B, C, H, W], or tokens [B, N, D] in a square behind any class tokens.
        bandwidth: standard deviation of the kernel.

    Raises:
        ValueError: for a bandwidth out of (0, 1], a teacher that names no stages, or features
            without two places to compare.
    """

    def __init__(
        self, teacher: Classifier, taps: Sequence[str] = (), bandwidth: float = 0.05
    ) -> None:
        super().__init__()
        if not 0 < bandwidth <= 1:
            raise ValueError(f"the bandwidth must lie in (0, 1], but is {bandwidth}")
        self.teacher_taps = tuple(taps) or stage_taps(teacher.module)
        if not self.teacher_taps:
            raise ValueError("the teacher names no stages: name the loss's taps=[PATH, ...]")
        self.bandwidth = bandwidth

    def forward(self, synthesis: Synthesis) -> Tensor:
        maps = [to_map(synthesis.teacher.features[tap]) for tap in self.teacher_taps]
        maps = [x for x in maps if x.shape[2] * x.shape[3] > 1]
        if not maps:
            raise ValueError(
                f"none of {', '.join(self.teacher_taps)} has two places to compare: name other taps"
            )
        return -torch.stack([self._entropy(similarities(x)).mean() for x in maps]).sum()

    def _entropy(self, values: Tensor) -> Tensor:
        """H [B] of the kernel density of ``values`` [B, P] in [−1, 1]."""
        h = self.bandwidth
        reach = 1 + 4 * h
        count = math.ceil(2 * reach / h) + 1
        places = torch.linspace(-reach, reach, count, device=values.device, dtype=values.dtype)
        kernel = torch.exp(-0.5 * ((places[:, None] - values[:, None]) / h) ** 2)  # [B, count, P]
        density = kernel.mean(dim=2) / (h * math.sqrt(2 * math.pi))
        density = density + 1e-12  # where it is zero the logarithm would have no gradient
        return torch.trapezoid(-density * density.log(), places, dim=1)


def similarities(x: Tensor) -> Tensor:
    """Cosines of every two places of a map [B, C, H, W], once each: [B, P]."""
    size = (min(x.shape[2], LARGEST), min(x.shape[3], LARGEST))
    unit = F.normalize(pool_to(x, size).flatten(2), dim=1, eps=1e-6)
    cosine = unit.transpose(1, 2) @ unit
    count = cosine.shape[1]
    row, column = torch.triu_indices(count, count, offset=1, device=x.device)
    return cosine[:, row, column]
