"""Contrastive synthesis losses, between inputs and between classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.functional import supervised_contrast
from core.runtime import Runtime
from generators.base import Synthesis, SynthesisLoss
from models.classifier import Classifier
from models.features import to_vector
from models.layers import projection_head
from models.taps import stage_taps


class InstanceContrast(SynthesisLoss):
    """mean_batch ℓ_i + mean_earlier ℓ_i, ℓ_i = −log exp(q_i·k_i/τ) / Σ_j exp(q_i·k_j/τ) (L_cr of
    CMI, IJCAI 2021, eq. 6).

    q_i and k_i are projections, of length 1, of the teacher's features on a local and on a global
    view of input i: the averages over places of the taps' channels. i and j run over the batch and
    over ``negatives`` inputs drawn from those of earlier rounds. As in the authors' code, earlier
    inputs are queries as well, which trains the projection, and keys take no gradient. The
    projection, two linear layers, is trained with what is synthesized; the memory holds the
    teacher's own features, so that it is never out of date. Unlike in their code, the projection
    too gets a fresh optimizer in each round, and every teacher is read at its stages, as theirs
    reads ResNet-34, rather than at every BatchNorm layer.

    Args:
        teacher: determines the number of features.
        runtime: gives the randomness of the negatives.
        taps: of the teacher; by default its stages, or ``pooled`` where it names none.
        memory: inputs whose features are remembered; the oldest leave first.
        negatives: drawn from them at each step, or all where they are fewer.
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
        taps: Sequence[str] = (),
        memory: int = 40_960,
        negatives: int = 4_096,
        temperature: float = 0.2,
        width: int = 256,
    ) -> None:
        super().__init__()
        if temperature <= 0 or memory < 1 or negatives < 1:
            raise ValueError("temperature, memory and negatives must be above 0")
        self.teacher_taps = tuple(taps) or stage_taps(teacher.module) or ("pooled",)
        self.runtime = runtime
        self.negatives, self.temperature = negatives, temperature
        size = sum(to_vector(x).shape[1] for x in example(teacher, self.teacher_taps).values())
        self.head = projection_head(size, width, hidden=size)
        self.register_buffer("memory", torch.zeros(memory, 2, size))  # local and global
        self.added = self.calls = 0

    memory: Tensor

    def forward(self, synthesis: Synthesis) -> Tensor:
        now = self._views(synthesis)
        rows = torch.cat([now, self._earlier()])
        query = self._project(rows[:, 0])
        key = self._project(rows[:, 1]).detach()
        own = torch.arange(len(rows), device=rows.device)
        losses = F.cross_entropy(query @ key.T / self.temperature, own, reduction="none")
        parts = losses.split([len(now), len(rows) - len(now)])
        return torch.stack([part.mean() for part in parts if len(part)]).sum()

    @torch.no_grad()
    def commit(self, synthesis: Synthesis) -> None:
        """Remember the features of a finished round."""
        features = self._views(synthesis)[-len(self.memory) :]
        place = torch.arange(self.added, self.added + len(features), device=features.device)
        self.memory[place % len(self.memory)] = features
        self.added += len(features)

    def get_extra_state(self) -> dict[str, Any]:
        return {"added": self.added, "calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.added, self.calls = state["added"], state["calls"]

    def _views(self, synthesis: Synthesis) -> Tensor:
        """[B, 2, F], the features of the local and of the global view."""
        assert synthesis.local is not None
        views = [
            torch.cat([to_vector(outputs.features[tap]) for tap in self.teacher_taps], dim=1)
            for outputs in (synthesis.local, synthesis.teacher)
        ]
        return torch.stack(views, dim=1).to(self.memory.dtype)

    def _earlier(self) -> Tensor:
        """[N, 2, F], the negatives of this call; N is 0 in the first round."""
        filled = min(self.added, len(self.memory))
        if not filled:
            return self.memory[:0]
        noise = self.runtime.noise("negatives", self.calls)
        self.calls += 1
        order = torch.rand(filled, generator=noise, device=self.memory.device).argsort()
        return self.memory[order[: self.negatives]]

    def _project(self, features: Tensor) -> Tensor:
        return F.normalize(self.head(features), dim=1)


class ClassContrast(SynthesisLoss):
    """L_SCL of CPSC-DFKD (Shao et al., Pattern Recognition 2023), for what makes the inputs.

    Teacher and student see two views of an input, and :func:`supervised_contrast` draws views of
    one class together and those of others apart: inputs that both networks tell apart by class.
    Classes are those aimed at, or else the teacher's predictions. As in the authors' code the
    generator minimises it. Here it compares projections, one head for each network, trained with
    the generator; their code compares the features themselves, which must agree in size.

    Args:
        teacher: determines its number of features.
        student: likewise.
        tap: of both networks; its outputs are compared.
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
        self.teacher_taps = self.student_taps = (tap,)
        sizes = [example(network, (tap,))[tap].numel() for network in (teacher, student)]
        self.teacher_head, self.student_head = (projection_head(size, width) for size in sizes)

    def forward(self, synthesis: Synthesis) -> Tensor:
        assert synthesis.student is not None
        teacher, student = synthesis.teacher, synthesis.student
        label = teacher.logits.argmax(1) if synthesis.label is None else synthesis.label
        a = self.teacher_head(teacher.features[self.tap].flatten(1))
        b = self.student_head(student.features[self.tap].flatten(1))
        return supervised_contrast(a, b, label, self.temperature)


@torch.no_grad()
def example(network: Classifier, taps: Sequence[str]) -> dict[str, Tensor]:
    """The taps' features of one input of zeros."""
    parameter = next(network.parameters())
    x = torch.zeros(1, *network.takes.shape, device=parameter.device)
    with network.uncounted():
        return network.frozen(taps)(x).features
