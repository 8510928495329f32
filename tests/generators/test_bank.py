"""A bank keeps the teacher's answers, to the bit, where that spares passes of the teacher."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from core.runtime import Runtime
from core.schedules import UNKNOWN
from distillers.distiller import Distiller
from engine.parts import Parts
from generators.bank import Bank
from generators.mixture import Mixture
from generators.streams import Place
from tests.generators.small import CLASSES, SPEC, inversion, teacher
from tests.test_contracts import learn, make


class Asked:
    """A teacher that keeps all that it was asked and answered."""

    def __init__(self) -> None:
        self.network = teacher().frozen()
        self.inputs: list[Tensor] = []
        self.answers: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        assert not x.requires_grad
        self.inputs.append(x)
        self.answers.append(self.network(x).logits)
        return self.answers[-1]

    def known(self) -> dict[bytes, Tensor]:
        pairs = zip(torch.cat(self.inputs), torch.cat(self.answers), strict=True)
        return {x.numpy().tobytes(): answer for x, answer in pairs}


def test_what_a_run_will_store_has_to_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = functools.partial(Bank, SPEC, Runtime("cpu"), CLASSES)
    each, synthesizer, place = (
        SPEC.noise(1, torch.device("cpu")).numel(),
        inversion().synthesizer,
        2,
    )
    monkeypatch.setattr("core.memory.machine_memory", lambda: 40 * each)
    for steps, capacity in ((10, 1000), (1000, 40), (UNKNOWN, 1000)):  # 8 inputs in each update
        bank(capacity, steps=steps).start(synthesizer, Place(6, 0, place))
    with pytest.raises(ValueError, match=r"the 48 inputs .* smaller source\.streams\.NAME\.capac"):
        bank(1000, steps=11).start(synthesizer, Place(6, 0, place))


@pytest.mark.parametrize("capacity", [5, 20, 100])
def test_what_is_drawn_brings_the_answer_to_itself(capacity: int) -> None:
    """Rounded, from rounds of a warm-up too, and with a bank that has forgotten some."""
    asked = Asked()
    source = inversion(capacity=capacity, ask_teacher=asked, warmup=2)
    for step in range(6):
        batch = source.next()
        assert [len(x) for x in asked.inputs] == [8] * (3 + step // 2), "once as it is stored"
        assert batch.teacher_logits is not None
        known = asked.known()
        for x, answer in zip(batch.input, batch.teacher_logits, strict=True):
            assert torch.equal(known[x.numpy().tobytes()], answer)
        torch.testing.assert_close(batch.teacher_logits, asked.network(batch.input).logits)


@pytest.mark.parametrize(
    ("settings", "keeps"),
    [
        ({}, True),  # 10 rounds of 8 inputs for 20 batches of 6
        ({"warmup": 4}, True),  # 14 · 8 = 112 < 120
        ({"warmup": 5}, False),  # 15 · 8 = 120
        ({"size": 11}, True),
        ({"size": 12}, False),
        ({"student_steps": 1}, False),
        ({"steps": 21}, True),  # 11 rounds
        ({"steps": 21, "size": 12}, False),
    ],
)
def test_the_teacher_sees_fewer_inputs_or_the_bank_asks_nothing(
    settings: dict[str, Any], keeps: bool
) -> None:
    asked, steps = Asked(), settings.get("steps", 20)
    source = inversion(ask_teacher=asked, **settings)
    for _ in range(steps):
        batch = source.next()
        assert (batch.teacher_logits is not None) == keeps
    seen = sum(map(len, asked.inputs))
    assert seen < steps * source.batch_size
    plan = source.plan(steps)
    assert (plan.answers, plan.known_batches) == (seen, steps if keeps else 0)
    assert bool(seen) == keeps


def queries(parts: Parts, steps: int) -> tuple[int, int]:
    """Those of a run's first steps, and those that its rounds need for their gradients."""
    learn(parts, steps)
    assert isinstance(parts.source, Mixture)
    return parts.counts()["teacher_queries"], parts.source.plan(steps).gradients


EXPERIENCE = "+source.streams.experience={_target_: generators.experience.Experience, batches: 1}"
SIX = ["source.student_steps=3", "source.warmup=1"]  # 3 rounds of 8 inputs, 6 batches of 8


@pytest.mark.parametrize("method", ["deep_inversion", "fast_dfkd", "psaq_vit", "zskd"])
@pytest.mark.parametrize("beside", [[], [EXPERIENCE]])  # which has answers too
def test_a_step_asks_the_teacher_nothing(method: str, beside: list[str]) -> None:
    parts, _ = make(method, *SIX, *beside)
    asked, gradients = queries(parts, 6)
    assert asked - gradients == 3 * 8


AUGMENT = "source.augment=[{_target_: data.augment.RandomAffine, degrees: 20.0}]"
REPLAY = (
    "+source.streams.replay={_target_: generators.replay.VAE, decoder: '${generator}', "
    "fraction: 0.125, optimizer: {_target_: torch.optim.Adam, _partial_: true}}"
)
TWO = [
    "+teachers.second={model: '${teacher.model}', checkpoint: null, seed: 1}",
    "+teachers.both={_target_: distillers.combinations.Mean, of: [teacher, second]}",
    "+distiller.losses.kd.teacher=both",
]
ATTACK = "+views.attacked={_target_: distillers.attacks.PGD, epsilon: 0.1, iterations: 1}"
ELSEWHERE = [ATTACK, "+distiller.losses.kd.teacher=teacher@attacked"]


@pytest.mark.parametrize(
    ("overrides", "inputs"),
    [
        ([AUGMENT], 6 * 8),
        ([AUGMENT, EXPERIENCE], 4 * 8),  # of three batches, one is replayed
        (["loss=at"], 6 * 8),
        (TWO, 6 * 16),
        (ELSEWHERE, 6 * 8),
        ([REPLAY], 6 * 8 + 2 * 8),  # the autoencoder's own targets, in both periods
        (["synthesizer.size=16", "source.student_steps=1"], 6 * 8),
        (["source.student_steps=2", EXPERIENCE], 3 * 8),  # as many would be stored
    ],
)
def test_nothing_is_asked_in_vain(overrides: list[str], inputs: int) -> None:
    """Where the step has to ask the teacher anyway, or less often than inputs are stored."""
    parts, _ = make("fast_dfkd", *SIX, *overrides)
    asked, gradients = queries(parts, 6)
    assert asked - gradients == inputs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_as_if_the_teacher_were_asked(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close, and not equal: a library may compute the rows of another batch in another order."""
    settings = [*SIX, f"precision={precision}", "synthesizer.size=16"]
    kept, _ = make("fast_dfkd", *settings)
    monkeypatch.setattr(Distiller, "ask_teacher", None)
    asked, _ = make("fast_dfkd", *settings)
    for _ in range(4):
        batches = [parts.source.next() for parts in (kept, asked)]
        assert torch.equal(batches[0].input, batches[1].input)
        known = [batch.teacher_logits is not None for batch in batches]
        assert known == [True, False]
        losses = [parts.distiller(b).total for parts, b in zip((kept, asked), batches, strict=True)]
        torch.testing.assert_close(*losses)
