"""The time of a cycle is that of all that a run does in it."""

from __future__ import annotations

import pytest

from benchmarks import plain_step, step_time
from benchmarks.cost import plain_line
from benchmarks.step_time import DEFAULTS, WARM_UP
from engine.train import Training
from models.ema import EMA


def test_a_cycle_waits_twice_and_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    done = {"now": 0, "learn": 0, "ema": 0, "clip": 0}
    now, learn, update = step_time.now, Training._learn, EMA.update
    clip = step_time.torch.nn.utils.clip_grad_norm_

    def counted(name: str, function):  # type: ignore[no-untyped-def]
        def call(*args):  # type: ignore[no-untyped-def]
            done[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(step_time, "now", counted("now", now))
    monkeypatch.setattr(Training, "_learn", counted("learn", learn))
    monkeypatch.setattr(EMA, "update", counted("ema", update))
    monkeypatch.setattr(step_time.torch.nn.utils, "clip_grad_norm_", counted("clip", clip))
    settings = ["batch_size=2", "device=cpu", "source.student_steps=2", "ema=0.9", "clip=1.0"]
    figures = step_time.measure_step([*DEFAULTS, *settings], repeat=2)
    cycles = WARM_UP + 2
    assert done == {"now": 2 * cycles, "learn": 2 * cycles, "ema": 2 * cycles, "clip": 2 * cycles}
    whole, update_, step = (
        figures[f"{k}_seconds"]["median"] for k in ("cycle", "generator_step", "student_step")
    )
    assert 0 < step < whole
    assert 0 < update_ < whole


def test_a_cycle_may_be_one_step() -> None:
    settings = [
        "batch_size=2",
        "device=cpu",
        "source.student_steps=1",
        "source.streams.fresh.reuse=true",
    ]
    assert step_time.measure_step([*DEFAULTS, *settings], repeat=1)["cycle_seconds"]["median"] > 0


def test_a_plain_loop_is_timed_in_pairs() -> None:
    figures = plain_step.measure_plain([*DEFAULTS, "batch_size=2"], repeat=2)
    ours, other, ratio = (figures[k] for k in ("cycle_seconds", "plain_seconds", "ratio"))
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert 0.99 * ours["min"] / other["max"] < ratio["median"] < 1.01 * ours["max"] / other["min"]
    assert f"{ratio['median']:.3f}" in plain_line(figures)
