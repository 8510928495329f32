"""A stream of stored inputs: what the rounds of inversion have made so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.runtime import Runtime
from core.schedules import UNKNOWN
from data.pairs import Alike
from data.spec import Batch, InputSpec
from generators.base import Ask, Made, Synthesizer
from generators.store import Store
from generators.streams import Place, Stream


class Bank(Stream):
    """Keeps the inputs of the latest updates, and draws from them uniformly.

    A value is off by at most 1/510 of the range: inputs are stored in 8 bits. The teacher's answers
    are kept where the mixture says so: those to the inputs as they are drawn, rounded.

    Args:
        spec: of the inputs.
        runtime: the device.
        num_classes: that inputs are aimed at.
        capacity: inputs kept; the oldest leave first.
        fraction: of each batch; None for all that the other streams leave.
        steps: batches in the whole run, by which memory is checked; None checks nothing.

    Raises:
        ValueError: for a capacity below 1, or a fraction outside of (0, 1), and, once it is to
            start, for more inputs than fit into memory.
    """

    remembers_classes = can_keep_answers = True
    classes: Alike | None

    def __init__(
        self,
        spec: InputSpec,
        runtime: Runtime,
        num_classes: int,
        capacity: int = 50_000,
        fraction: float | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(fraction)
        self.steps, self.to_come = steps, 0
        self.num_classes, self.classes = num_classes, None
        self.store = Store(spec, capacity, runtime.device)
        self.unknown = torch.full((), -1, device=runtime.device)
        self.labelled, self.updates = True, 0
        self.ask: Ask | None = None

    @property
    def answered(self) -> bool:  # type: ignore[override]
        return self.ask is not None

    def start(self, synthesizer: Synthesizer, place: Place) -> None:
        if self.steps is not None and self.steps < UNKNOWN:
            self.to_come = -(-self.steps // place.period) * synthesizer.size
            self.store.check_memory(self.to_come)

    def keep_answers(self, ask: Ask) -> None:
        self.ask = ask
        self.store.make_room(self.num_classes)
        self.store.check_memory(self.to_come)

    def learn(self, made: Made) -> None:
        self.labelled = made.label is not None
        label = self.unknown.expand(len(made.input)) if made.label is None else made.label
        answers = self.ask(self.store.rounded(made.input)) if self.ask else None
        self.store.add(made.input, label, self.updates, answers=answers)
        self.updates += 1
        self.classes = None

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        images, label, index = self.store.sample(size, noise)
        answers = self.store.answers_to(index) if self.ask else None
        return Batch(images, label if self.labelled else None, index, answers)

    def alike(self, batch: Batch, noise: torch.Generator) -> Tensor:
        label = batch.label
        if not self.labelled or label is None:
            raise ValueError(
                "an input is aimed at no class here, so that none is of the same class: use a "
                "conditional generator, or pairs of the same_input"
            )
        if self.classes is None:
            rows = torch.arange(len(self.store), device=label.device)
            self.classes = Alike(rows, self.store.labels[: len(self.store)], self.num_classes)
        found = self.store.at(self.classes.draw(label, noise))
        known = self.classes.has(label).view(-1, *(1,) * (found.dim() - 1))
        return torch.where(known, found, batch.input)

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.store.state_dict(), "updates": self.updates, "labelled": self.labelled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.load_state_dict(state["bank"])
        self.updates, self.labelled = state["updates"], state["labelled"]
        self.classes = None
