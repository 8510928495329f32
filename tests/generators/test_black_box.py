"""Whole runs against a black box: budget, count, resume, and what evaluation may see."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.runtime import Runtime
from engine.config import ConfigError, compose, plain
from engine.parts import build_dataset
from engine.queries import planned_queries
from engine.train import run
from models.black_box import BlackBox
from models.checkpoint import save_network
from tests.test_contracts import learn, make, same, small, teacher_for

BOX = "teacher.black_box={_target_: models.black_box.BlackBox, directions: 2}"
VAE = (
    "+source.streams.replay={_target_: generators.replay.VAE, decoder: '${generator}', "
    "fraction: 0.3, updates: 2, optimizer: {_target_: torch.optim.Adam, _partial_: true}}"
)
REUSE = ["source.streams.fresh.reuse=true", "source.student_steps=1"]
JITTER = "[{_target_: generators.views.Jitter, pixels: 1, flip: false}]"
ROUNDS = ["source.student_steps=3", "~synthesis.losses.bn"]


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("dfme", []),
        ("dfme", ["synthesizer.updates=2", "source.student_steps=3"]),
        ("dfme", REUSE),
        ("dfme", [*REUSE, f"source.augment={JITTER}"]),
        ("dfme", [*REUSE, f"synthesis.views={JITTER}"]),
        ("dfme", [*REUSE, VAE]),
        ("maze", []),
        ("maze", ["source.student_steps=4", "source.streams.experience.batches=3"]),
        ("dfme", [VAE]),
        ("dfad", [BOX]),
        ("adi", [BOX, *ROUNDS]),
        ("adi", [BOX, *ROUNDS, "source.warmup=2"]),
        ("kd", [BOX]),
    ],
)
def test_the_plan_is_what_a_run_takes(method: str, overrides: list[str]) -> None:
    parts, _ = make(method, *overrides)
    assert isinstance(parts.teacher, BlackBox)
    for steps in range(1, 18):
        learn(parts, 1)
        plan = planned_queries(parts.teacher, parts.source, parts.distiller, 8, steps)
        assert parts.teacher.meter.queries == parts.counts()["teacher_queries"] == plan


def test_a_budget_too_small_is_refused_with_the_most_steps_it_allows() -> None:
    overrides = ["teacher.black_box.budget=1000", "steps=5000"]
    with pytest.raises(ValueError, match=r"5,000 steps need 56,000 .* steps=89$"):
        make("dfme", *overrides)
    make("dfme", *overrides, "steps=89")
    with pytest.raises(ValueError, match="steps=89"):
        make("dfme", *overrides, "steps=90")


def test_a_budget_below_one_step_is_refused() -> None:
    for more in ([], ["source.warmup=3"]):  # which is spent before the first step
        with pytest.raises(ValueError, match="10: that is not enough for the first step"):
            make("maze", "teacher.black_box.budget=10", *more)


def test_what_the_plan_does_not_see_meets_the_budget_in_the_run() -> None:
    parts, _ = make("dfme", "steps=5", "teacher.black_box.budget=56")
    learn(parts, 5)
    with pytest.raises(ValueError, match=r"at most 56 .* 56 were made"):
        parts.source.next()


def finished(tmp_path: Path, name: str, *overrides: str) -> dict[str, Any]:
    config = small("dfme", "steps=6", f"run_dir={tmp_path / name}", *overrides)
    path = tmp_path / "teacher.safetensors"
    if not path.exists():
        settings = plain(config)
        save_network(path, teacher_for(settings, build_dataset(settings, Runtime("cpu"))), {})
    config.teacher.checkpoint = str(path)
    result = run(config, Runtime("cpu"))
    assert json.loads((tmp_path / name / "result.json").read_text()) == result
    return result


def test_the_result_names_every_query_and_evaluation_makes_none(tmp_path: Path) -> None:
    queries = 6 * 8 + 2 * 8 * 2  # six batches, and two updates with one direction each
    settings = [f"teacher.black_box.budget={queries}", "evaluations=3"]
    result = finished(tmp_path, "boxed", *settings)
    assert result["cost"]["teacher_queries"] == queries
    assert result["teacher"]["parameters"] > 0
    assert 0 < result["student"]["agreement"] <= 1
    white = finished(tmp_path, "white", "teacher.black_box=null")
    assert white["cost"]["teacher_queries"] == 6 * 8 + 2 * 8
    assert white["teacher"] == result["teacher"]


REPLAY = ["source.student_steps=5", "source.streams.experience.batches=2"]


@pytest.mark.parametrize(("method", "overrides"), [("dfme", []), ("maze", REPLAY)])
def test_a_resumed_run_continues_the_count_and_the_noise(method: str, overrides: list[str]) -> None:
    first, _ = make(method, *overrides)
    learn(first, 4)
    second, _ = make(method, *overrides)
    for name in ("source", "distiller", "optimizer"):
        getattr(second, name).load_state_dict(copy.deepcopy(getattr(first, name).state_dict()))
    assert first.counts() == second.counts()
    learn(first, 4)
    torch.rand(3)
    learn(second, 4)
    assert same(first.source.state_dict(), second.source.state_dict())
    assert first.counts() == second.counts()
    # and the count matters: without it the directions would be others
    third, _ = make(method, *overrides)
    third.source.load_state_dict(copy.deepcopy(second.source.state_dict()))
    for parts in (second, third):
        learn(parts, 3)
    assert not same(second.source.state_dict(), third.source.state_dict())


@pytest.mark.parametrize("method", ["dfq", "dafl", "zskt"])
def test_a_method_that_looks_inside_is_refused_with_methods_that_work(method: str) -> None:
    with pytest.raises(ValueError, match="dfme or maze"):
        make(method, BOX)


@pytest.mark.parametrize("value", ["true", "{budget: 3}"])
def test_a_black_box_that_is_no_part_is_a_mistake_of_the_configuration(value: str) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.black_box builds a part"):
        compose([f"teacher.black_box={value}"])


def test_keys_of_the_box_are_checked() -> None:
    with pytest.raises(ConfigError, match="budget"):
        compose(["method=dfme", "teacher.black_box.bugdet=3"])
    with pytest.raises(ConfigError, match="whole number"):
        compose(["method=dfme", "teacher.black_box.budget=1.5"])
