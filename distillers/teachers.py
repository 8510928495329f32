"""What answers beside networks: averages of students, combinations, memories."""

from __future__ import annotations

import torch

from distillers.step import Roles, Step, Teacher
from models.classifier import Classifier, Outputs
from models.ema import EMA


class Average(Teacher):
    """An exponential moving average of a student (Tarvainen and Valpola, NeurIPS 2017).

    It answers in eval mode, with buffers that are copies of the student's; see
    :class:`models.ema.EMA`.

    Args:
        of: the student's name.
        decay: in [0, 1).
        rising: whether the decay rises to this value, or is the same from the start.
    """

    def __init__(self, of: str = "student", decay: float = 0.999, rising: bool = True) -> None:
        super().__init__()
        self.of, self.decay, self.rising = (of,), decay, rising

    def prepare(self, roles: Roles) -> None:
        self.average = EMA(roles.students[self.of[0]], self.decay, self.rising)
        self.averaged = self.average.module

    def train(self, mode: bool = True) -> Average:
        return super().train(False)

    @torch.no_grad()
    def forward(self, step: Step, view: str) -> Outputs:
        with step.roles.runtime.autocast():
            return self.averaged(step.view(view))  # type: ignore[no-any-return]

    def updated(self) -> None:
        self.average.update()

    def network(self) -> Classifier:
        return self.averaged

    def get_extra_state(self) -> dict[str, int]:
        return {"updates": self.average.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.average.updates = state["updates"]
