"""The pieces of several papers in one run: each does its part, and it resumes to its bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.runtime import Stopped
from engine.parts import Parts
from generators.variables import one_hot
from tests.test_contracts import learn, make, same, snapshot

CLASSES = ["generator.conditional=true"]
CONTRASTS = [
    "+synthesis.losses.alike={weight:0.5,"
    "loss:{_target_:generators.contrast.InstanceContrast,memory:32,negatives:8}}",
    "+synthesis.losses.classes={weight:0.5,loss:{_target_:generators.contrast.ClassContrast}}",
    "synthesis.local_views=[{_target_:generators.views.Jitter,pixels:2,flip:false}]",
]
# Reverie's losses with MAD's classes and twin, CMI's and CPSC's contrast, and MAZE's experience.
BESIDE = [
    *CLASSES,
    *CONTRASTS,
    "generator.conditioning=add",
    "+synthesis.losses.norm={weight:1.0,loss:{_target_:generators.latent.LatentNorm}}",
    "+source.streams.replay={_target_:generators.replay.EMAGenerator,decay:0.9,fraction:0.25}",
    "source.streams.experience.batches=1",
    "synthesis.views=[{_target_:generators.views.Jitter,pixels:1,flip:false}]",
    "source.streams.fresh.reuse=false",
    "source.student_steps=2",
]
# FastDFKD's meta-learned generator and moving statistics, for classes, with contrast and balance.
META = [
    *CLASSES,
    *CONTRASTS,
    "+synthesis.losses.balance={weight:5.0,loss:{_target_:generators.losses.InformationEntropy}}",
    "source.student_steps=2",
    "source.warmup=1",
]
# SpaceshipNet's exchange of what a generator behind CMI's contrast and ZSKD's targets has made.
EXCHANGE = [
    *CLASSES,
    *CONTRASTS,
    "+synthesis.losses.target={weight:0.1,loss:{_target_:generators.dirichlet.SoftTarget}}",
    "synthesizer.targets={_target_:generators.dirichlet.DirichletTargets}",
    "source.streams.exchange.capacity=16",
    "source.student_steps=2",
]
RECIPES = {
    "beside": ("reverie", BESIDE),
    "meta": ("fast_dfkd", META),
    "exchange": ("spaceshipnet", EXCHANGE),
}


@pytest.fixture(params=RECIPES)
def made(request: pytest.FixtureRequest) -> Callable[[], Parts]:
    method, overrides = RECIPES[request.param]
    return lambda: make(method, *overrides)[0]


def test_it_runs_and_resumes_to_the_same_bits(made: Callable[[], Parts]) -> None:
    first = made()
    learn(first, 3)
    torch.manual_seed(99)
    second = made()
    for name in ("source", "distiller", "optimizer"):
        getattr(second, name).load_state_dict(copy.deepcopy(getattr(first, name).state_dict()))
    learn(first, 4)
    torch.rand(7)
    learn(second, 4)
    assert same(first.source.state_dict(), second.source.state_dict())
    assert same(snapshot(first.distiller), snapshot(second.distiller))
    assert first.source.counts() == second.source.counts()


@pytest.mark.parametrize("recipe", ["meta", "exchange"])
def test_a_stop_within_a_round_leaves_what_it_trained_as_it_was(recipe: str) -> None:
    method, overrides = RECIPES[recipe]
    undisturbed, stopped = (make(method, *overrides)[0].source for _ in range(2))
    for source in (undisturbed, stopped):
        source.next(), source.next()
    before = copy.deepcopy(stopped.state_dict())
    runtime: Any = stopped.runtime  # type: ignore[attr-defined]
    runtime.asked_to_stop = lambda index: index == 2
    with pytest.raises(Stopped):
        stopped.next()
    assert same(stopped.state_dict(), before)
    del runtime.asked_to_stop
    a, b = undisturbed.next(), stopped.next()
    assert torch.equal(a.input, b.input)
    assert same(undisturbed.state_dict(), stopped.state_dict())


def test_every_loss_is_computed_and_the_student_is_left_alone(made: Callable[[], Parts]) -> None:
    parts = made()
    before = snapshot(parts.student)
    for _ in range(4):
        batch = parts.source.next()
        parts.source.learned(batch, parts.distiller(batch))
    assert all(p.grad is None for p in parts.student.parameters())
    trained = {k: v for k, v in before.items() if "running" not in k and "tracked" not in k}
    after = snapshot(parts.student)
    assert all(torch.equal(value, after[k]) for k, value in trained.items())
    losses = parts.source.report()
    wanted = set(parts.source.synthesizer.observe.objective.losses)  # type: ignore[attr-defined]
    assert wanted <= set(losses)
    assert all(losses[name] for name in wanted - {"norm"}), "a loss that was left out counts as 0"


def test_the_pieces_are_all_at_work() -> None:
    parts = make("reverie", *BESIDE)[0]
    learn(parts, 4)
    counts = parts.counts()
    batch = parts.source.next()
    # two fresh batches, each 6 of the generator and 2 of its twin, and two of the update
    assert counts["images_synthesized"] == 2 * (8 + 8)
    # two looks at each update, and the student's own question on each fresh batch
    assert counts["teacher_queries"] == 2 * 8 * 2 + 2 * 8
    assert batch.label is not None
    replayed = [b.teacher_logits is not None for b in (batch, parts.source.next())]
    assert replayed == [False, True]


@pytest.mark.parametrize(("overrides", "batches"), [([], 0), (["loss=at"], 12)])
def test_the_teacher_is_asked_again_only_for_its_features(
    overrides: list[str], batches: int
) -> None:
    """Reverie's student learns from the images of the updates themselves, with known answers."""
    parts = make("reverie", *overrides)[0]
    learn(parts, 12)
    assert parts.source.synthesizer.steps == 2  # type: ignore[attr-defined]
    assert parts.counts()["teacher_queries"] == (2 + batches) * 8


def test_a_one_hot_code_is_the_control_of_the_names_meaning() -> None:
    control = "synthesizer.variable.embeddings._target_=generators.variables.one_hot"
    parts, named = make("nayer", control)[0], make("nayer")[0]
    assert torch.equal(one_hot(3), torch.eye(3))
    code, meaning = (p.source.synthesizer.variable.embeddings for p in (parts, named))  # type: ignore[attr-defined]
    assert code.shape == (10, 10)
    assert meaning.shape == (10, 384)
    distances = torch.cdist(code, code)[~torch.eye(10, dtype=torch.bool)]
    torch.testing.assert_close(distances, distances[:1].expand(90))  # no class nearer than another
    learn(parts, 2)
