"""Whole cycles of a method's training: an update or a round, and the student's steps after it."""

from __future__ import annotations

from typing import Any

import torch

from core.runtime import Runtime
from engine.config import plain
from engine.loop import Training
from engine.parts import Parts, build_dataset, build_parts
from engine.probe import Inputs
from models.classifier import Classifier
from tests.test_contracts import others_for, small, teacher_for


class Cycles:
    """A method's loop from the inside, with all that a step of it can do: clip, EMA, schedule.

    Args:
        parts: of a run.
        config: its plain settings.
        teacher: of the run, or None.
        runtime: of the run.
    """

    def __init__(
        self, parts: Parts, config: dict[str, Any], teacher: Classifier | None, runtime: Runtime
    ) -> None:
        inputs = Inputs(parts.dataset.open("test"), "the test split")
        self.training = Training(config, parts, teacher, inputs, None, runtime)
        self.length: int = config["source"].get("student_steps", 1)
        self.step = 0

    def run(self) -> None:
        """One cycle: the first batch brings the update or the round with it."""
        source = self.training.parts.source
        made = getattr(source, "updates", 0)
        for _ in range(self.length):
            batch = source.next()
            self.training._learn(self.training.parts.distiller, batch, self.step)
            self.step += 1
        now = getattr(source, "updates", 0)
        assert now != made or not self.training.config["data_free"], "nothing was synthesized"


def of_method(method: str, *overrides: str) -> Cycles:
    """Of a small run, on a data set of digits, with an untrained teacher."""
    config = small(method, *overrides)
    config.clip = 1.0
    if "average" not in config.get("teachers", {}):
        config.ema = 0.9
    streams = config.source.get("streams", {})
    short = {"warmup": 1} | ({} if "experience" in streams else {"student_steps": 2})
    for key, value in short.items():
        if config.source.get(key, 0) > value:
            config.source[key] = value
    runtime = Runtime.of(config)
    settings = plain(config)
    dataset = build_dataset(settings, runtime)
    teacher = teacher_for(settings, dataset) if settings["needs_teacher"] else None
    if teacher:
        runtime.prepare(teacher)
    torch.manual_seed(0)
    others = others_for(settings, dataset)
    for network in others.values():
        runtime.prepare(network)
    parts = build_parts(settings, dataset, teacher, runtime, others)
    return Cycles(parts, settings, teacher, runtime)
