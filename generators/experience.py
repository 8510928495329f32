"""Experience replay: inputs with a teacher's earlier answers, which cost no queries."""

from __future__ import annotations

from typing import Any

import torch

from core.objective import Losses
from core.runtime import Runtime
from core.schedules import UNKNOWN
from data.spec import Batch, InputSpec
from generators.base import Synthesizer, Workload
from generators.store import Store
from generators.streams import Place, Stream


class Experience(Stream):
    """Keeps inputs with the teacher's answers, and gives batches of both (MAZE, CVPR 2021).

    After each update of the synthesizer the student first learns from new batches, whose queries
    are paid for, and then from ``batches`` of stored ones, which cost none. Every answered batch is
    stored, and a uniform sample of them is kept; the authors store one batch of five and keep all.
    Inputs are stored in full precision, so that an answer belongs to exactly the input that it is
    stored with.

    Args:
        spec: of the inputs.
        num_classes: values of an answer.
        runtime: device and noise.
        batches: of stored inputs that follow each update.
        capacity: inputs kept.
        steps: batches in the whole run, by which memory is checked; None checks nothing.

    Raises:
        ValueError: for fewer than one batch, a capacity below 1, and, once it is to start, for
            more batches than fit between two updates, and more inputs than fit into memory.
    """

    whole = known = True

    def __init__(
        self,
        spec: InputSpec,
        num_classes: int,
        runtime: Runtime,
        batches: int = 10,
        capacity: int = 50_000,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if batches < 1:
            raise ValueError(f"an experience replays at least 1 batch, not {batches}")
        self.batches, self.runtime, self.steps = batches, runtime, steps
        self.store = Store(spec, capacity, runtime.device, "reservoir", num_classes, exact=True)
        self.stored = 0
        self.replayed = False  # whether the latest batch was

    def start(self, synthesizer: Synthesizer, place: Place) -> None:
        if self.batches >= place.period:
            raise ValueError(
                f"it replays batches={self.batches} of the source.student_steps={place.period} "
                "batches between two updates: at least one has to be new"
            )
        self.period = place.period
        if self.steps is not None and self.steps < UNKNOWN:
            fresh = self.steps - self.plan(self.steps).known_batches
            self.store.check_memory(fresh * place.size)

    def due(self, turn: int, noise: torch.Generator) -> bool:
        return len(self.store) > 0 and turn >= self.period - self.batches

    def plan(self, batches: int) -> Workload:
        periods, rest = divmod(batches, self.period)
        last = max(0, rest - (self.period - self.batches))
        return Workload(known_batches=periods * self.batches + last)

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        """Stored inputs with their answers."""
        self.replayed = True
        images, label, index = self.store.sample(size, noise)
        return Batch(images, label, None, self.store.answers_to(index))

    def learned(self, batch: Batch, losses: Losses) -> None:
        """Store a fresh batch.

        Raises:
            ValueError: if the student's losses did not ask the teacher.
        """
        replayed, self.replayed = self.replayed, False
        if replayed:
            return
        answers = losses.teacher_logits if batch.teacher_logits is None else batch.teacher_logits
        if answers is None:
            raise ValueError(
                "an experience replays the teacher's answers, but no loss under "
                "distiller.losses asks for any: add one that does, such as kd"
            )
        label = answers.argmax(1) if batch.label is None else batch.label
        noise = self.runtime.noise("experience", self.stored)
        self.store.add(batch.input, label, self.stored, noise, answers)
        self.stored += 1

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.store.state_dict(), "stored": self.stored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.load_state_dict(state["bank"])
        self.stored = state["stored"]
