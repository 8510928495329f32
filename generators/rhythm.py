"""How often a synthesizer is updated: the student's batches between two updates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Later:
    """Another number of batches between two updates, from some update on.

    Args:
        updates: after which it counts.
        student_steps: batches between two of the following updates.

    Raises:
        ValueError: for counts below 1.
    """

    updates: int
    student_steps: int

    def __post_init__(self) -> None:
        if min(self.updates, self.student_steps) < 1:
            raise ValueError(
                "source.later needs updates and student_steps of at least 1, not "
                f"{self.updates} and {self.student_steps}"
            )


@dataclass(frozen=True)
class Rhythm:
    """Batches between two updates, which may become fewer or more.

    Args:
        period: batches from one update to the next.
        later: from when on it is another number.
    """

    period: int
    later: Later | None = None

    @property
    def longest(self) -> int:
        """The largest number of batches between two updates."""
        return max(self.period, self.later.student_steps if self.later else 0)

    def at(self, batch: int) -> tuple[int, int, int]:
        """The update that a batch follows, and how many batches come before and after it in between
        this update and the next; all from 0."""
        first, rest = self._parts(batch)
        if self.later and first == self._switch:
            updates, turn = divmod(rest, self.later.student_steps)
            return self.later.updates + updates, turn, self.later.student_steps - turn - 1
        updates, turn = divmod(first, self.period)
        return updates, turn, self.period - turn - 1

    def updates(self, batches: int) -> int:
        """Updates before the last of so many batches."""
        return self.at(batches - 1)[0] + 1 if batches else 0

    def last(self, batches: int, count: int) -> int:
        """Of so many batches, those that are among the last ``count`` before an update, but not the
        first one after the update before."""
        first, rest = self._parts(batches)
        found = _last(first, self.period, count)
        return found + (_last(rest, self.later.student_steps, count) if self.later else 0)

    @property
    def _switch(self) -> int:
        """Batches with the first period."""
        assert self.later is not None
        return self.later.updates * self.period

    def _parts(self, batches: int) -> tuple[int, int]:
        """Batches with the first period, and with the later one."""
        first = min(batches, self._switch) if self.later else batches
        return first, batches - first


def _last(batches: int, period: int, count: int) -> int:
    whole, rest = divmod(batches, period)
    count = min(count, period - 1)
    return whole * count + max(0, rest - (period - count))
