"""The queries that a run will make of a black box, counted before it starts."""

from __future__ import annotations

import bisect
from functools import partial

from distillers.distiller import Distiller
from generators.base import Planner, Source, Workload
from models.black_box import BlackBox


def planned_queries(
    teacher: BlackBox, source: Source, distiller: Distiller, batch_size: int, steps: int
) -> int:
    """Workload of one process over ``steps`` student steps: the source's own and the student's.

    It is exact unless schedules switch off losses; then it is an upper bound.
    """
    plan = source.plan(steps) if isinstance(source, Planner) else Workload()
    asked = (steps - plan.known_batches) * batch_size if distiller.teacher else 0
    return asked + plan.answers + plan.gradients * teacher.queries_per_gradient


def check_budget(
    teacher: BlackBox, source: Source, distiller: Distiller, batch_size: int, steps: int
) -> None:
    """Check a run's queries against the budget, before the first is spent.

    Raises:
        ValueError: if it does not suffice, with the largest number of steps for which it does.
    """
    if teacher.budget is None:
        return
    processes = teacher.runtime.world_size
    share = teacher.budget // processes
    planned = partial(planned_queries, teacher, source, distiller, batch_size)
    if planned(steps) > share:
        most = bisect.bisect_right(range(steps), share, key=planned) - 1
        enough = f"enough for steps={most}" if most > 0 else "not enough for the first step"
        raise ValueError(
            f"{steps:,} steps need {processes * planned(steps):,} queries of the teacher, but "
            f"teacher.black_box.budget is {teacher.budget:,}: that is {enough}"
        )
