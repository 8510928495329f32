"""A run's length from a time budget: timing real steps gives the number of steps."""

from __future__ import annotations

import bisect
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from core.runtime import Runtime
from core.schedules import UNKNOWN
from generators.base import Planner, Practising, Source, Workload

if TYPE_CHECKING:
    from engine.loop import Training

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
TOLERANCE = 0.15  # of the budget; a run that is further off says why
SHARE = 0.03  # of the budget, spent on each part that is timed
LEAST, MOST = 0.3, 20.0  # seconds of timing for each part, whatever the budget
BRIEF = 1.0  # seconds of timing for a plan without a budget


def parse_budget(text: str | float) -> float:
    """Seconds of ``"90s"``, ``"10m"``, ``"1h30m"``, ``"2h"`` or a number of seconds.

    Raises:
        ValueError: for anything else, empty text included.
    """
    written = str(text).strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", written)
    if parts and "".join(a + b for a, b in parts) == written:
        seconds = sum(float(count) * UNITS[unit] for count, unit in parts)
    else:
        try:
            seconds = float(written)
        except ValueError:
            seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"budget={text} is not a time: write 90s, 10m, 1h30m or 2h")
    return seconds


def spell(seconds: float) -> str:
    """``seconds`` in readable form: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def verdict(budget: float, taken: float, rounds: bool) -> str:
    """Why a run took more or less time than its budget; nothing if it is within 15 %.

    Args:
        rounds: whether synthesis comes in rounds, which a run makes whole or not at all.
    """
    if abs(taken / budget - 1) <= TOLERANCE:
        return ""
    speed = "slower" if taken > budget else "faster"
    reasons = [f"the machine was {speed} than when the first steps were timed"]
    if rounds and taken < budget:
        reasons.append("one more round of synthesis would not have fitted")
    reasons.append("the cost of a step changed during the run")
    return (
        f"this run took {spell(taken)} in total, and its budget was {spell(budget)}: "
        f"{', or '.join(reasons)}"
    )


@dataclass
class Pace:
    """How long the parts of a run take on this machine.

    Args:
        step: seconds of a batch and the student's step on it.
        update: seconds of an iteration of a round, or of an update before the first batch; 0 where
            synthesis is a part of the steps.
        evaluation: seconds of an evaluation.
        memory: peak bytes so far.
    """

    step: float
    update: float
    evaluation: float
    memory: int

    def total(self, steps: int, work: Workload, evaluations: int) -> float:
        """Seconds of a whole run."""
        return (
            steps * self.step
            + work.updates * self.update
            + min(evaluations, steps) * self.evaluation
        )


@dataclass
class Timing:
    """A pace, and the workload of the source that it was measured on."""

    pace: Pace
    source: Source
    evaluations: int

    def seconds(self, steps: int) -> float:
        work = self.source_plan(steps)
        return self.pace.total(steps, work, max(1, self.evaluations))

    def source_plan(self, steps: int) -> Workload:
        return self.source.plan(steps) if isinstance(self.source, Planner) else Workload()

    def steps_within(self, seconds: float, budget: str) -> int:
        """The largest number of steps that fit into ``seconds``.

        Raises:
            ValueError: if one step and one evaluation do not fit, saying what would.
        """
        steps = bisect.bisect_right(range(1, UNKNOWN), seconds, key=self.seconds)
        if steps < 1:
            least = self.seconds(1)
            raise ValueError(
                f"budget={budget} is too short: a single step takes about {spell(least)} with its "
                f"evaluations, and {spell(max(0.0, seconds))} are left after timing. Give more, or "
                "evaluations=1, or another method"
            )
        return steps


def time_steps(training: Training, seconds: float) -> Timing:
    """Time a few real steps: synthesis, the student's step, schedules, clipping, EMA and meters.

    Args:
        training: a loop whose parts are thrown away afterwards.
        seconds: the least time to measure each part, in whole periods of the source.
    """
    parts, runtime = training.parts, training.runtime
    parts.compile(runtime)
    network = runtime.parallel(parts.distiller, parts.spare)
    source, step, update = parts.source, 0, 0.0
    if isinstance(source, Practising) and source.practice(1):
        update = _timed_updates(source, runtime, seconds)

    def period() -> None:
        nonlocal step
        for _ in range(source.period):
            training.step(network, step)
            step += 1

    period()
    each = _timed(period, runtime, seconds) / source.period
    evaluation = _timed(training.look, runtime, 0.0)
    each, update, evaluation = runtime.first([each, update, evaluation])
    pace = Pace(each, update, evaluation, runtime.peak_memory())
    return Timing(pace, source, training.config["evaluations"])


def _timed_updates(source: Practising, runtime: Runtime, seconds: float) -> float:
    """Seconds of an update, from as many as the time allows."""
    one = _timed(lambda: source.practice(1), runtime, 0.0)
    began = _now(runtime)
    count = source.practice(max(2, int(seconds / max(one, 1e-4))))
    return (_now(runtime) - began) / count


def _timed(work: Callable[[], Any], runtime: Runtime, seconds: float) -> float:
    """Mean seconds of the work, repeated until the time is up."""
    began, count = _now(runtime), 0
    while True:
        work()
        count += 1
        [spent] = runtime.first([_now(runtime) - began])
        if spent >= seconds:
            return spent / count


def _now(runtime: Runtime) -> float:
    """The time, once the device has finished its work."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
