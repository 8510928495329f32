"""Experience replay: inputs with a teacher's earlier answers, which cost no queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.objective import Losses
from core.runtime import Runtime
from data.spec import Batch, InputSpec
from generators.bank import Bank, Policy


class Experience:
    """Keeps inputs with the teacher's answers, and gives batches of both (MAZE, CVPR 2021).

    After each update of the generator the student first learns from fresh batches, whose queries
    are paid for, and then from ``batches`` of stored ones, which cost none. Every answered batch is
    stored, and by default a uniform sample of them is kept; the authors store one batch of five and
    keep all. As inputs are stored in 8 bits, fresh ones are rounded to 8 bits before either network
    sees them, so that an answer belongs to exactly the input that it is stored with.

    Args:
        spec: of the inputs.
        num_classes: values of an answer.
        runtime: device and noise.
        batches: of stored inputs that follow each update.
        capacity: inputs kept.
        policy: which are kept; see :class:`~generators.bank.Bank`.

    Raises:
        ValueError: for fewer than one batch, and as the bank does.
    """

    def __init__(
        self,
        spec: InputSpec,
        num_classes: int,
        runtime: Runtime,
        batches: int = 10,
        capacity: int = 50_000,
        policy: Policy = "reservoir",
    ) -> None:
        if batches < 1:
            raise ValueError(f"an experience replays at least 1 batch, not {batches}")
        self.batches, self.runtime = batches, runtime
        self.bank = Bank(spec, capacity, runtime.device, policy, num_classes)
        self.stored = 0

    def due(self, batch: int, period: int) -> bool:
        """Whether a batch, counted from 0, is among the last of its period, which are replayed."""
        return batch % period >= period - self.batches

    def replayed(self, batches: int, period: int) -> int:
        """How many of so many batches are replayed."""
        periods, rest = divmod(batches, period)
        return periods * self.batches + max(0, rest - (period - self.batches))

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        """Stored inputs with their answers."""
        images, label, index = self.bank.sample(size, noise)
        return Batch(images, label, None, self.bank.answers[index])

    def rounded(self, images: Tensor) -> Tensor:
        """The images as they will be stored."""
        return self.bank.rounded(images)

    def learned(self, batch: Batch, losses: Losses) -> None:
        """Store a fresh batch.

        Raises:
            ValueError: if the student's losses did not ask the teacher.
        """
        if batch.teacher_logits is not None:
            return  # it was replayed
        answers = losses.teacher_logits
        if answers is None:
            raise ValueError(
                "source.experience replays the teacher's answers, but no loss under "
                "distiller.losses asks for any: add one that does, such as kd"
            )
        label = answers.argmax(1) if batch.label is None else batch.label
        noise = self.runtime.noise("experience", self.stored)
        self.bank.add(batch.input, label, self.stored, noise, answers)
        self.stored += 1

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.bank.state_dict(), "stored": self.stored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state["bank"])
        self.stored = state["stored"]
