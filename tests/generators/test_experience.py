"""Stored inputs with their answers: exact, unasked, and the same after a resume."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from core.objective import Losses
from core.runtime import Runtime
from core.schedules import UNKNOWN
from data.spec import Batch
from generators.bank import Bank
from generators.experience import Experience
from generators.streams import Place
from models.black_box import BlackBox
from tests.generators.small import CLASSES, SPEC, generative, teacher
from tests.test_contracts import make, same


def experience(**kwargs: Any) -> Experience:
    return Experience(SPEC, CLASSES, Runtime("cpu"), **{"batches": 2, "capacity": 100, **kwargs})


def images(seed: int, rows: int = 6) -> torch.Tensor:
    return torch.rand(rows, *SPEC.shape, generator=torch.Generator().manual_seed(seed))


def answered(seed: int) -> tuple[Batch, Losses]:
    x = images(seed)
    logits = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(seed + 100))
    return Batch(x), Losses(torch.zeros(()), {}, teacher_logits=logits)


@pytest.mark.parametrize("period", [3, 4, 15])
def test_the_last_batches_of_a_period_are_replayed(period: int) -> None:
    stored = experience()
    stored.start(generative().synthesizer, Place(6, 0, period))
    assert not stored.due(period - 1, torch.Generator())  # nothing is stored yet
    stored.learned(*answered(0))
    due = [stored.due(i % period, torch.Generator()) for i in range(40)]
    assert due[:period] == [False] * (period - 2) + [True] * 2
    assert due[period : 2 * period] == due[:period]
    for batches in range(41):
        assert stored.plan(batches).known_batches == sum(due[:batches])


def test_what_a_run_will_store_has_to_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the whole capacity, where the run is too short to fill it."""
    each = 4 * (SPEC.noise(1, torch.device("cpu")).numel() + CLASSES)
    monkeypatch.setattr("core.memory.machine_memory", lambda: 30 * each)
    synthesizer, place = generative().synthesizer, Place(6, 0, 4)  # half of the batches are new
    experience(steps=8).start(synthesizer, place)
    experience(steps=1000, capacity=30).start(synthesizer, place)
    experience(steps=UNKNOWN).start(synthesizer, place)  # of a run that is being timed
    with pytest.raises(ValueError, match=r"the 36 inputs .* smaller source\.streams\.NAME\.capac"):
        experience(steps=10).start(synthesizer, place)


def test_what_is_drawn_was_stored_bit_for_bit_and_with_its_own_answer() -> None:
    stored = experience()
    known: dict[bytes, torch.Tensor] = {}
    for seed in range(3):
        batch, losses = answered(seed)
        stored.learned(batch, losses)
        for x, logits in zip(batch.input, losses.teacher_logits, strict=True):
            known[x.numpy().tobytes()] = logits
    drawn = stored.draw(40, torch.Generator().manual_seed(0))
    assert drawn.index is None
    assert drawn.teacher_logits is not None
    for x, logits, label in zip(drawn.input, drawn.teacher_logits, drawn.label, strict=True):
        assert torch.equal(known[x.numpy().tobytes()], logits)
        assert label == logits.argmax()
    assert len({x.numpy().tobytes() for x in drawn.input}) > 12


def test_a_replayed_batch_is_not_stored_again() -> None:
    stored = experience()
    stored.learned(*answered(0))
    drawn = stored.draw(6, torch.Generator().manual_seed(0))
    stored.learned(drawn, Losses(torch.zeros(()), {}, teacher_logits=drawn.teacher_logits))
    assert len(stored.store) == 6


def test_answers_have_to_be_asked_for() -> None:
    batch, _ = answered(0)
    with pytest.raises(ValueError, match=r"add one that does, such as kd"):
        experience().learned(batch, Losses(torch.zeros(()), {}))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least 1 batch"):
        experience(batches=0)
    with pytest.raises(
        ValueError,
        match=r"streams\.experience: it replays batches=2 of the source\.student_steps=2",
    ):
        generative(streams={"experience": experience()}, student_steps=2)
    generative(streams={"experience": experience()}, student_steps=3)


def test_the_source_hands_out_fresh_batches_and_then_known_ones() -> None:
    source = generative(streams={"experience": experience()}, student_steps=5)
    for step in range(12):
        batch = source.next()
        assert batch.input.shape == (6, *SPEC.shape)
        assert (batch.teacher_logits is not None) == (step % 5 >= 3)
        logits = torch.zeros(6, CLASSES)
        source.learned(batch, Losses(torch.zeros(()), {}, teacher_logits=logits))
    assert source.synthesizer.steps == 3
    assert source.counts()["images_synthesized"] == 3 * 8 + 8 * 6


def test_with_reuse_the_student_asks_nothing() -> None:
    """The first batch is the update's own, the others are stored: all bring their answers."""
    source = generative(streams={"experience": experience()}, student_steps=3, size=6, reuse=True)
    asked = teacher()
    stored = []
    for step in range(9):
        batch = source.next()
        assert batch.teacher_logits is not None
        torch.testing.assert_close(batch.teacher_logits, asked(batch.input).logits)
        if step % 3 == 0:
            stored += [x.numpy().tobytes() for x in batch.input]
        assert all(x.numpy().tobytes() in stored for x in batch.input)
        source.learned(batch, Losses(torch.zeros(()), {}))
    assert len(source.streams["experience"].store) == 18
    assert source.counts()["images_synthesized"] == 18
    for count in range(10):
        assert source.plan(count).known_batches == count
    several = {"experience": experience(), "bank": Bank(SPEC, Runtime("cpu"), CLASSES, 9, 0.5)}
    mixed = generative(streams=several, student_steps=3, size=6, reuse=True)
    assert mixed.plan(9).known_batches == 6
    assert mixed.next().teacher_logits is None


def test_an_updates_inputs_survive_a_resume_until_they_are_handed_on() -> None:
    source, other = (generative(student_steps=3, size=6, reuse=True) for _ in range(2))
    fresh, resumed = source.streams["fresh"], other.streams["fresh"]
    fresh.learn(source.synthesizer.update(0.0))
    resumed.load_state_dict(copy.deepcopy(fresh.state_dict()))
    a, b = fresh.draw(6, torch.Generator()), resumed.draw(6, torch.Generator())
    assert torch.equal(a.input, b.input)
    assert a.teacher_logits is not None
    assert torch.equal(a.teacher_logits, b.teacher_logits)
    assert fresh.state_dict() == {}


def steps(parts: Any, count: int) -> list[dict[str, torch.Tensor]]:
    found = []
    for _ in range(count):
        batch = parts.source.next()
        losses = parts.distiller(batch)
        losses.total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.source.learned(batch, losses)
        found.append(losses.values)
    return found


def test_a_replayed_batch_costs_no_query() -> None:
    parts, _ = make("maze")
    assert isinstance(parts.teacher, BlackBox)
    spent = []
    for _ in range(32):
        before = parts.teacher.meter.queries
        steps(parts, 1)
        assert parts.counts()["teacher_queries"] == parts.teacher.meter.queries
        spent.append(parts.teacher.meter.queries - before)
    period = [8 + 8 * 11, *[8] * 4, *[0] * 10]
    assert spent == [*period, *period, 8 + 8 * 11, 8]


def test_the_answer_is_what_the_teacher_would_say_again() -> None:
    parts, _ = make("maze")
    steps(parts, 5)
    batch = parts.source.next()
    assert parts.teacher is not None
    torch.testing.assert_close(batch.teacher_logits, parts.teacher(batch.input).logits)


@pytest.mark.parametrize("stop", [3, 5, 9, 17])
def test_a_resumed_run_replays_the_same(stop: int) -> None:
    first, _ = make("maze", "source.streams.experience.capacity=30")
    steps(first, stop)
    torch.manual_seed(99)
    second, _ = make("maze", "source.streams.experience.capacity=30")
    for name in ("source", "distiller", "optimizer"):
        getattr(second, name).load_state_dict(copy.deepcopy(getattr(first, name).state_dict()))
    expected = steps(first, 18)
    torch.rand(3)
    assert same(expected, steps(second, 18))
    assert same(first.source.state_dict(), second.source.state_dict())
    assert first.counts() == second.counts()
