"""A stream of stored inputs: what the rounds of inversion have made so far."""

from __future__ import annotations

from typing import Any

import torch

from core.runtime import Runtime
from data.spec import Batch, InputSpec
from generators.base import Made
from generators.store import Store
from generators.streams import Stream


class Bank(Stream):
    """Keeps the inputs of the latest updates, and draws from them uniformly.

    A value is off by at most 1/510 of the range: inputs are stored in 8 bits.

    Args:
        spec: of the inputs.
        runtime: the device.
        capacity: inputs kept; the oldest leave first.
        fraction: of each batch; None for all that the other streams leave.

    Raises:
        ValueError: for a capacity below 1, or a fraction outside of (0, 1).
    """

    def __init__(
        self,
        spec: InputSpec,
        runtime: Runtime,
        capacity: int = 50_000,
        fraction: float | None = None,
    ) -> None:
        super().__init__(fraction)
        self.store = Store(spec, capacity, runtime.device)
        self.unknown = torch.full((), -1, device=runtime.device)
        self.labelled, self.updates = True, 0

    def learn(self, made: Made) -> None:
        self.labelled = made.label is not None
        label = self.unknown.expand(len(made.input)) if made.label is None else made.label
        self.store.add(made.input, label, self.updates)
        self.updates += 1

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        images, label, index = self.store.sample(size, noise)
        return Batch(images, label if self.labelled else None, index)

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.store.state_dict(), "updates": self.updates, "labelled": self.labelled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.load_state_dict(state["bank"])
        self.updates, self.labelled = state["updates"], state["labelled"]
