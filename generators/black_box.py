"""What a run will ask of a black box, known before it starts."""

from __future__ import annotations

import bisect
from functools import partial

from distillers.distiller import Distiller
from generators.base import Source
from generators.generative import GenerativeSource
from models.black_box import BlackBox


def planned_queries(
    teacher: BlackBox, source: Source, distiller: Distiller, batch_size: int, steps: int
) -> int:
    """Queries of one process over ``steps`` student steps, as far as they can be foreseen.

    Those of a generator's updates and those of the student; what else a source may ask, for a
    replay of its own, say, is left to the meter.
    """
    queries = steps * batch_size if distiller.teacher else 0
    if isinstance(source, GenerativeSource):
        updates = -(-steps // source.student_steps) * source.generator_steps
        images = updates * source.synthesis_batch_size * source.observe.queries_per_image
        queries += images * teacher.queries_per_gradient
    return queries


def check_budget(
    teacher: BlackBox, source: Source, distiller: Distiller, batch_size: int, steps: int
) -> None:
    """Hold a run's queries against the budget, before the first is spent.

    Raises:
        ValueError: where it does not suffice, with the most steps for which it does.
    """
    if teacher.budget is None:
        return
    processes = teacher.runtime.world_size
    share = teacher.budget // processes
    planned = partial(planned_queries, teacher, source, distiller, batch_size)
    if planned(steps) > share:
        most = bisect.bisect_right(range(steps), share, key=planned) - 1
        raise ValueError(
            f"{steps:,} steps need {processes * planned(steps):,} queries of the teacher, but "
            f"teacher.black_box.budget is {teacher.budget:,}: that is enough for steps={most}"
        )
