"""Contrast between instances: synthesized inputs unlike each other, and unlike earlier ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.runtime import Runtime
from generators.base import Synthesis, SynthesisTerm
from models.classifier import Classifier


class InstanceContrast(SynthesisTerm):
    """−log exp(q·k⁺/τ) / Σ_k exp(q·k/τ), mean over the batch (L_cr of CMI, IJCAI 2021, eq. 6).

    q and k⁺ are projections of the teacher's features on a local and a global view of the same
    input, of length 1; the other k are the global views of the rest of the batch and
    ``negatives`` features drawn from those of earlier rounds. The projection, two linear layers,
    is trained with what is synthesized. The memory holds the teacher's own features, so that it
    never falls behind the projection.

    Args:
        teacher: tells how many features there are.
        runtime: gives the draw of the negatives.
        tap: of the teacher, whose output is compared.
        memory: how many features are remembered; the oldest leave first.
        negatives: drawn from them at each step.
        temperature: τ > 0.
        width: of the projection.

    Raises:
        ValueError: for a temperature, memory or number of negatives that is not positive.
    """

    needs_local = True

    def __init__(
        self,
        teacher: Classifier,
        runtime: Runtime,
        tap: str = "pooled",
        memory: int = 40_960,
        negatives: int = 4_096,
        temperature: float = 0.2,
        width: int = 256,
    ) -> None:
        super().__init__()
        if temperature <= 0 or memory < 1 or negatives < 1:
            raise ValueError("temperature, memory and negatives must be above 0")
        self.taps = (tap,)
        self.runtime, self.tap = runtime, tap
        self.negatives, self.temperature = negatives, temperature
        size = _feature_size(teacher, tap)
        self.head = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width))
        self.register_buffer("memory", torch.zeros(memory, size))
        self.added = self.calls = 0

    memory: Tensor

    def forward(self, synthesis: Synthesis) -> Tensor:
        assert synthesis.local is not None
        query = self._project(synthesis.local.features[self.tap])
        keys = self._project(synthesis.teacher.features[self.tap])
        earlier = self._earlier()
        if earlier is not None:
            keys = torch.cat([keys, self._project(earlier)])
        own = torch.arange(len(query), device=query.device)
        return F.cross_entropy(query @ keys.T / self.temperature, own)

    @torch.no_grad()
    def commit(self, synthesis: Synthesis) -> None:
        """Remember the features of a finished round."""
        features = synthesis.teacher.features[self.tap].flatten(1)[-len(self.memory) :]
        place = torch.arange(self.added, self.added + len(features), device=features.device)
        self.memory[place % len(self.memory)] = features.to(self.memory.dtype)
        self.added += len(features)

    def get_extra_state(self) -> dict[str, Any]:
        return {"added": self.added, "calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.added, self.calls = state["added"], state["calls"]

    def _earlier(self) -> Tensor | None:
        filled = min(self.added, len(self.memory))
        if not filled:
            return None
        noise = self.runtime.noise("negatives", self.calls)
        self.calls += 1
        device = self.memory.device
        return self.memory[torch.randint(filled, (self.negatives,), generator=noise, device=device)]

    def _project(self, features: Tensor) -> Tensor:
        return F.normalize(self.head(features.flatten(1)), dim=1)


@torch.no_grad()
def _feature_size(teacher: Classifier, tap: str) -> int:
    parameter = next(teacher.parameters())
    x = torch.zeros(1, *teacher.spec.shape, device=parameter.device)
    return teacher.frozen([tap])(x).features[tap].numel()
