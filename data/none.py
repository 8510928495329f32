"""No data at all: a data-free run only needs to know what its teacher expects."""

from __future__ import annotations

from collections.abc import Callable

from core.runtime import Runtime
from data.dataset import Dataset
from data.spec import Expected


def none(expected: Callable[[], Expected], runtime: Runtime) -> Dataset:
    """A data set without a split, for a teacher whose data is lost, private or too large.

    Args:
        expected: what the teacher's file, its library or the user says about its input, complete.

    Raises:
        ValueError: if it does not fit together.
    """
    known = expected()
    try:
        spec = known.spec
    except ValueError as error:
        raise ValueError(f"what the teacher expects does not fit together: {error}") from None
    return Dataset("none", {}, known.classes, runtime, spec=spec)
