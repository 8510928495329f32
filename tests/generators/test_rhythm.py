"""Batches between updates, counted one by one."""

from __future__ import annotations

import pytest

from generators.rhythm import Later, Rhythm

RHYTHMS = [Rhythm(1), Rhythm(4), Rhythm(6, Later(3, 2)), Rhythm(2, Later(4, 5))]
RHYTHMS += [Rhythm(3, Later(1, 1))]


def counted(rhythm: Rhythm, batches: int) -> list[tuple[int, int, int]]:
    """What ``at`` says of each batch, by going through the periods."""
    found: list[tuple[int, int, int]] = []
    update = 0
    while len(found) < batches:
        later = rhythm.later
        period = later.student_steps if later and update >= later.updates else rhythm.period
        found += [(update, turn, period - turn - 1) for turn in range(period)]
        update += 1
    return found[:batches]


@pytest.mark.parametrize("rhythm", RHYTHMS)
def test_every_batch_has_its_place(rhythm: Rhythm) -> None:
    expected = counted(rhythm, 60)
    assert [rhythm.at(batch) for batch in range(60)] == expected
    for batches in range(61):
        assert rhythm.updates(batches) == len({update for update, _, _ in expected[:batches]})
        for count in range(1, 7):
            among = [turn > 0 and left < count for _, turn, left in expected[:batches]]
            assert rhythm.last(batches, count) == sum(among), (batches, count)
    assert rhythm.longest == max(turn for _, turn, _ in expected) + 1


@pytest.mark.parametrize(("updates", "student_steps"), [(0, 2), (2, 0)])
def test_counts_below_one(updates: int, student_steps: int) -> None:
    with pytest.raises(ValueError, match=r"source\.later needs updates and student_steps"):
        Later(updates, student_steps)
