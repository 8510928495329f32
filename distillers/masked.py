"""The teacher's features, generated from the student's masked features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from core.runtime import Runtime
from data.spec import Batch
from distillers.adapters import Adapter
from distillers.base import Side, Taps, TransferLoss
from distillers.connector import maps
from models.classifier import Outputs
from models.features import to_map


class MGD(TransferLoss):
    """Σ_taps ‖G(r(F_s)·M) − F_t‖² / B, M a random mask of zeros and ones (Yang et al., ECCV 2022).

    Masked generative distillation. r is a 1×1 convolution where the channels differ, G two 3×3
    convolutions with a rectifier between them; both are learned. The square is summed over
    channels and places.

    The paper writes of masked pixels. The authors' code for classification, which the weight of
    7e-5 and the ratio of 0.15 come from, masks whole channels of each input; for segmentation its
    ratio is 0.75. Of two maps the larger is average-pooled to the smaller, where the authors need
    one size; their r has a bias.

    Args:
        runtime: the randomness of the masks.
        taps: maps [B, C, H, W] or tokens.
        ratio: probability that a channel, or a place, is masked, in [0, 1).
        mask: what is masked of each input.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        runtime: Runtime,
        taps: Taps = ("stage-1",),
        ratio: float = 0.15,
        mask: Literal["channels", "places"] = "channels",
    ) -> None:
        super().__init__(taps)
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio is a probability in [0, 1), but is {ratio}")
        if mask not in ("channels", "places"):
            raise ValueError(f"mask is 'channels' or 'places', not {mask!r}")
        self.runtime, self.ratio, self.mask = runtime, ratio, mask
        self.steps = 0
        self.adapters = nn.ModuleList()
        self.generators = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        for s, t in self.pairs(student.outputs, teacher.outputs):
            adapter = Adapter(*maps(s, t))
            self.adapters.append(adapter)
            self.generators.append(_generation(adapter.channels[1]))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        noise = self.runtime.noise("mgd", self.steps)
        self.steps += 1
        modules = zip(self.adapters, self.generators, strict=True)
        losses = []
        for (adapter, generate), (s, t) in zip(modules, self.pairs(student, teacher), strict=True):
            s, t = adapter(to_map(s), to_map(t))
            losses.append((generate(s * self._mask(s, noise)) - t).square().sum() / len(s))
        return torch.stack(losses).sum()

    def _mask(self, x: Tensor, noise: torch.Generator) -> Tensor:
        """[B, C, 1, 1] or [B, 1, H, W] of zeros, at the ratio, and ones."""
        batch, width, *size = x.shape
        shape = (batch, width, 1, 1) if self.mask == "channels" else (batch, 1, *size)
        drawn = torch.rand(shape, generator=noise, device=noise.device)
        return (drawn >= self.ratio).to(x.dtype)

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def _generation(width: int) -> nn.Sequential:
    first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), second)
