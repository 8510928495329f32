"""Pools of teachers of which a step asks some."""

from __future__ import annotations

from collections.abc import Sequence

from distillers.step import Step, Teacher
from models.classifier import Outputs


class RandomTeacher(Teacher):
    """One of several teachers, drawn anew in each step (MEAL, Shen, He and Xue, AAAI 2019).

    All losses of a step that ask it get the same teacher's answers, at whatever view; the pool asks
    no other. Each rank draws its own.

    Args:
        of: the teachers' names, at least one.

    Raises:
        ValueError: for no name.
    """

    def __init__(self, of: Sequence[str]) -> None:
        super().__init__()
        if not of:
            raise ValueError("a pool needs at least one teacher: name some in of=[...]")
        self.of = tuple(of)

    def forward(self, step: Step, view: str) -> Outputs:
        stream = f"pool {' '.join(self.of)}"
        drawn = step.noise(stream).initial_seed() % len(self.of)  # known without the device
        return step.answer(self.of[drawn], view)
