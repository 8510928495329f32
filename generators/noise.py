"""Inputs that are nothing but noise: the control of every method that synthesizes some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.runtime import Runtime
from data.spec import Batch, InputSpec
from generators.base import Made, Workload


class Noise:
    """Draws inputs whose values are independent, and learns nothing.

    After normalisation every value is standard normal, and clamped to the range. So each channel
    has about the mean and the standard deviation that the teacher expects, and nothing else of its
    data. At each place of a text, every word is as likely as any other; categories are as with
    :class:`generators.variables.Pixels`. A student that learns as much from noise owes nothing to
    the synthesis.

    Args:
        spec: of the inputs.
        runtime: device and noise.
        size: inputs of an update, on each rank: the student's batch.
    """

    answers = False  # the teacher is asked by the student's step alone
    generator = None

    def __init__(self, spec: InputSpec, runtime: Runtime, size: int) -> None:
        self.spec, self.runtime, self.size = spec, runtime, size
        self.steps = 0

    def update(
        self, progress: float, student_knows: bool = True, iterations: int | None = None
    ) -> Made:
        noise = self.runtime.noise("generator", self.steps)
        self.steps += 1
        return Made(self._drawn(self.size, noise))

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        return Batch(self._drawn(size, noise))

    def watch(self, layers: Sequence[nn.Module]) -> None:
        """No layer makes anything here."""

    def plan(self) -> Workload:
        return Workload()

    def report(self) -> dict[str, Tensor | float]:
        return {}

    def counts(self) -> dict[str, int]:
        return {"images_synthesized": self.steps * self.size}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def _drawn(self, size: int, noise: torch.Generator) -> Tensor:
        values = torch.randn(size, *self.spec.shape, generator=noise, device=noise.device)
        if (limits := self.spec.kind.limits(values, self.spec)) is not None:
            values = values.clamp(*limits)
        return self.spec.kind.standard(values, self.spec)
