"""How long a run will be: its number of steps from a time budget, and its plan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from core.runtime import Runtime
from core.schedules import UNKNOWN
from data.dataset import Dataset
from engine.budget import BRIEF, LEAST, MOST, SHARE, Timing, parse_budget, time_steps
from engine.expected import expected
from engine.loop import Training
from engine.parts import build_parts, offered
from engine.plan import plan
from engine.probe import Inputs
from engine.run import RunDirectory
from models.classifier import Classifier


class Length:
    """Fixes the number of steps of a run that has a budget, and says what the run will do.

    The number is fixed before the first step and never changes: a run that is continued takes it
    from its directory. Where neither a budget nor a plan is asked for, nothing is timed.

    Args:
        settings: plain; ``steps`` is set here.
        directory: claimed.

    Attributes:
        seconds: how long timing took.

    Raises:
        ValueError: for a budget that is not a time.
    """

    def __init__(self, settings: dict[str, Any], directory: RunDirectory) -> None:
        self.settings, self.directory = settings, directory
        self.seconds = 0.0
        self.timing: tuple[Timing, Classifier] | None = None  # and the student that was timed
        text = settings["budget"]
        self.budget = None if text is None else parse_budget(text)
        self.recorded = directory.recorded_steps()
        if self.budget is not None:
            self._set(self.recorded or 1)

    def fix(
        self,
        dataset: Dataset,
        teacher: Classifier | None,
        inputs: Inputs,
        runtime: Runtime,
        others: Mapping[str, Classifier] | None = None,
    ) -> None:
        """Time a few steps, if they are needed, and set the number of steps.

        Args:
            others: teachers besides, by name.
            inputs: as many as the student will be measured on; what they are does not matter.

        Raises:
            ValueError: for a budget that is too short.
        """
        settings = self.settings
        if self.recorded or not (self.budget is not None or self._planned(dataset)):
            return
        began = time.perf_counter()
        share = BRIEF if self.budget is None else min(MOST, max(LEAST, SHARE * self.budget))
        trial = settings | {"steps": UNKNOWN, "teacher": dict(settings["teacher"])}
        if box := trial["teacher"]["black_box"]:  # timing costs nothing of a budget of queries
            trial["teacher"]["black_box"] = {k: v for k, v in box.items() if k != "budget"}
        parts = build_parts(trial, dataset, teacher, runtime, others)
        timing = time_steps(Training(trial, parts, teacher, inputs, None, runtime), share)
        self.seconds = time.perf_counter() - began
        if self.budget is not None:
            [left] = runtime.first([self.budget - self.seconds])
            self._set(timing.steps_within(left, str(settings["budget"])))
        if self._planned(dataset):
            self.timing = timing, parts.student

    def _set(self, steps: int) -> None:
        self.settings["steps"] = steps
        self.directory.record_steps(steps)

    def _planned(self, dataset: Dataset) -> bool:
        asked = self.settings["plan"]
        return not dataset.has("test") if asked is None else bool(asked)

    def plan(
        self, dataset: Dataset, teacher: Classifier | None, inputs: Inputs, runtime: Runtime
    ) -> str:
        """The lines of the plan; none where nothing was timed, or none are wanted."""
        if self.timing is None or teacher is None or not self._planned(dataset):
            return ""
        timing, student = self.timing
        self.timing = None  # a bank among them
        known = expected(self.settings["teacher"])
        available = offered(self.settings, dataset, teacher, runtime) | {"student": student}
        figures = "accuracy, agreement and calibration"
        if not inputs.split.labelled:
            figures = "agreement with the teacher, which is not accuracy, and calibration to it"
        return plan(
            self.settings, known, teacher, available, timing, f"{figures}, on {inputs.words}"
        )
