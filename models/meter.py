"""Counting the inputs that a network answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Meter(nn.Module):
    """Counts queries, up to a limit. A module, so that its count is part of a checkpoint."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.queries = 0
        self.counting = True

    def add(self, count: int) -> None:
        """Count queries, before they are made.

        Raises:
            ValueError: for more than the limit, which are then not counted.
        """
        if not self.counting:
            return
        if self.limit is not None and self.queries + count > self.limit:
            raise ValueError(
                f"the teacher answers at most {self.limit:,} queries of this process: "
                f"{self.queries:,} were made, and {count:,} more are needed. "
                "Take fewer steps, or raise teacher.black_box.budget"
            )
        self.queries += count

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose queries are not counted, for passes that train nothing."""
        self.counting, before = False, self.counting
        try:
            yield
        finally:
            self.counting = before

    def get_extra_state(self) -> dict[str, int]:
        return {"queries": self.queries}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.queries = state["queries"]


def queries(module: nn.Module) -> int:
    """How many inputs were answered by all networks whose meters are part of ``module``."""
    return sum(m.queries for m in module.modules() if isinstance(m, Meter))
