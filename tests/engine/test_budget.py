"""A budget of time in place of a number of steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.budget import Pace, Timing, parse_budget, spell, verdict
from generators.base import Workload


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        ("0.5h", 1800),
        ("90", 90),
        (45, 45),
    ],
)
def test_a_budget_is_a_time(text: str | int, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "ten minutes", "10x", "m", "-5m", "0s", "nan", "inf", "5m3"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 90s, 10m, 1h30m or 2h"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.24, "4.2 s"), (42, "42 s"), (200, "3 min 20 s"), (600, "10 min"), (7500, "2 h 5 min")],
)
def test_times_are_spelled_out(seconds: float, text: str) -> None:
    assert spell(seconds) == text


class Rounds:
    """200 iterations every 10 steps, and 3 rounds before the first."""

    in_rounds = True

    def practice(self, updates: int) -> int:
        return updates

    def plan(self, steps: int) -> Workload:
        return Workload(updates=200 * (3 - (-steps // 10)))


def timing(source: Any, evaluations: int = 10) -> Timing:
    return Timing(Pace(step=0.1, update=0.01, evaluation=2.0, memory=0), source, evaluations)


def test_the_steps_are_the_most_that_fit() -> None:
    plain = timing(SimpleNamespace())
    assert plain.seconds(100) == pytest.approx(100 * 0.1 + 10 * 2)
    assert plain.steps_within(30.001, "30s") == 100
    rounds = timing(Rounds(), evaluations=1)
    steps = rounds.steps_within(100.0, "100s")
    assert rounds.seconds(steps) <= 100 < rounds.seconds(steps + 1)
    assert rounds.seconds(21) == pytest.approx(2.1 + 6 * 200 * 0.01 + 2)


def test_a_budget_too_short_for_one_evaluation_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"budget=1s is too short: a single step takes about 2.1 s"
    ):
        timing(SimpleNamespace()).steps_within(0.9, "1s")


def test_the_verdict_says_why_a_run_took_another_time() -> None:
    assert verdict(100.0, 114.0, False) == ""
    assert verdict(100.0, 86.0, True) == ""
    slower = verdict(100.0, 120.0, True)
    assert "took 2 min in total, and its budget was 1 min 40 s: the machine was slower" in slower
    assert "round" not in slower
    assert "one more round of synthesis would not have fitted" in verdict(100.0, 80.0, True)
    assert "round" not in verdict(100.0, 80.0, False)
