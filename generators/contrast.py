"""Contrast: inputs unlike each other and earlier ones; classes unlike each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distillers.contrast import projection_head, supervised_contrast
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
    remembers_best = True

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
        size = feature_size(teacher, tap)
        self.head = projection_head(size, width)
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


class SupervisedContrast(SynthesisTerm):
    """L_SCL of CPSC-DFKD (Shao et al., Pattern Recognition 2023), for what makes the inputs.

    Teacher and student see two views of an input, and :func:`supervised_contrast` draws views of
    one class together and those of others apart: inputs that both networks tell apart by class.
    Classes are those aimed at, or else the teacher's predictions. As in the authors' code it is
    the generator that minimises it, though here on projections, one head for each network, that
    are trained with it: there the features themselves, which have to agree in size.

    Args:
        teacher: tells how many features it has.
        student: likewise.
        tap: of both, whose output is compared.
        temperature: τ > 0.
        width: of the projections.

    Raises:
        ValueError: for a temperature or a width that is not positive.
    """

    needs_student = True

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        tap: str = "pooled",
        temperature: float = 0.07,
        width: int = 128,
    ) -> None:
        super().__init__()
        if temperature <= 0 or width < 1:
            raise ValueError("supervised contrast needs temperature and width above 0")
        self.tap, self.temperature = tap, temperature
        self.taps = self.student_taps = (tap,)
        self.teacher_head = projection_head(feature_size(teacher, tap), width)
        self.student_head = projection_head(feature_size(student, tap), width)

    def forward(self, synthesis: Synthesis) -> Tensor:
        assert synthesis.student is not None
        teacher, student = synthesis.teacher, synthesis.student
        label = teacher.logits.argmax(1) if synthesis.label is None else synthesis.label
        a = self.teacher_head(teacher.features[self.tap].flatten(1))
        b = self.student_head(student.features[self.tap].flatten(1))
        return supervised_contrast(a, b, label, self.temperature)


@torch.no_grad()
def feature_size(network: Classifier, tap: str) -> int:
    """How many features a tap gives for one input."""
    parameter = next(network.parameters())
    x = torch.zeros(1, *network.spec.shape, device=parameter.device)
    return network.frozen([tap])(x).features[tap].numel()
