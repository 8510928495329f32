"""Channel exchange against a naive loop, the pool it draws from, and batches made of it."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from core.objective import Losses
from core.runtime import Runtime
from data.spec import Batch
from generators.base import Made
from generators.mixture import Mixture
from generators.networks import GeneratorEnsemble, StandardGenerator
from generators.spaceship import FeatureExchange, exchange_channels
from generators.variables import Generated, MetaGenerated, Pixels
from tests.generators.small import CLASSES, SPEC, generative, inversion, same, snapshot
from tests.generators.test_trained_settings import EagerRuntime

RUNTIME = Runtime(device="cpu")


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(**kwargs: Any) -> StandardGenerator:
    torch.manual_seed(0)
    return StandardGenerator(SPEC, CLASSES, latent_size=5, channels=8, **kwargs)


def features(generator: StandardGenerator, rows: Tensor) -> Made:
    """What a pass of the generator gives at its depths."""
    seen: list[Tensor] = []
    hooks = [
        generator.stages[depth].register_forward_hook(lambda _, args, x: seen.append(x.detach()))
        for depth in generator.depths
    ]
    images = generator(torch.randn(len(rows), 5, generator=noise()))
    for hook in hooks:
        hook.remove()
    return Made(images.detach(), rows, features=seen)


def exchanging(runtime: Runtime = RUNTIME, **kwargs: Any) -> Mixture:
    settings = {"capacity": 20, "probability": 1.0, **kwargs}
    variable = Generated(network(), runtime, lr_latent=None, lifetime=0)
    return inversion(
        runtime, variable=variable, streams={"exchange": FeatureExchange(runtime, **settings)}
    )


@pytest.mark.parametrize("shape", [(6, 8, 2, 2), (3, 5, 4, 4), (4, 7)])
def test_half_of_the_channels_are_exchanged_input_by_input(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(2, *shape, generator=noise()).unbind()
    mixed = exchange_channels(a, b, noise(1))
    drawn = torch.rand(shape[:2], generator=noise(1)).tolist()
    for i, row in enumerate(drawn):
        own = sorted(range(len(row)), key=row.__getitem__)
        kept = [own[c] < len(row) // 2 for c in range(len(row))]
        assert sum(kept) == len(row) // 2
        for c, from_a in enumerate(kept):
            assert torch.equal(mixed[i, c], (a if from_a else b)[i, c])
    if a.dim() > 2:
        own = (mixed == a).flatten(2).all(2)
        assert len(own.unique(dim=0)) > 1, "each input draws its own channels"


@pytest.mark.parametrize("conditional", [False, True])
def test_the_rest_of_the_generator_makes_the_images(conditional: bool) -> None:
    generator = network(conditional=conditional, conditioning="norm").eval()
    z, y = torch.randn(3, 5, generator=noise()), torch.tensor([0, 2, 1])
    seen: dict[int, Tensor] = {}
    for depth in generator.depths:
        generator.stages[depth].register_forward_hook(
            lambda _, args, x, depth=depth: seen.__setitem__(depth, x.clone())
        )
    images = generator(z, y)
    assert [seen[d].shape[2] for d in generator.depths] == [2, 4, 8]
    for depth, feature in dict(seen).items():
        torch.testing.assert_close(generator.finish(feature, y, depth + 1), images)


def test_the_pool_holds_the_features_of_what_a_round_keeps() -> None:
    """Of five iterations, those of the one whose objective was the lowest."""
    source = exchanging()
    synthesizer, exchange = source.synthesizer, source.streams["exchange"]
    passed: list[list[Tensor]] = []
    totals: list[float] = []
    synthesizer.observe.objective.register_forward_hook(
        lambda _, args, losses: totals.append(losses.total.item())
    )
    generator = synthesizer.generator
    for depth in generator.depths:
        generator.stages[depth].register_forward_hook(
            lambda _, args, x: (
                passed.append(x.detach().clone()) if torch.is_grad_enabled() else None
            )
        )
    source.next()
    best = totals.index(min(totals))
    assert len(passed) == 3 * len(totals) == 15
    for pool, feature in zip(exchange.pools, passed[3 * best : 3 * best + 3], strict=True):
        torch.testing.assert_close(pool[:8].float(), feature, atol=1e-2, rtol=1e-3)


def test_an_exchange_draws_two_inputs_of_one_depth() -> None:
    source = exchanging(capacity=6)
    exchange, generator = source.streams["exchange"], source.synthesizer.generator
    exchange.learn(features(generator, torch.arange(4)))
    state, depths = torch.get_rng_state(), set()
    for seed in range(12):
        assert exchange.due(0, noise(seed))
        images = exchange.draw(7, noise(seed)).input
        host = random.Random(seed)
        host.random()
        at = host.randrange(3)
        depths.add(at)
        drawn = noise(seed)
        one, other = torch.randint(4, (2, 7), generator=drawn)
        pool = exchange.pools[at].float()
        mixed = exchange_channels(pool[one], pool[other], drawn)
        still = copy.deepcopy(generator).eval()
        torch.testing.assert_close(images, still.finish(mixed, None, generator.depths[at] + 1))
    assert depths == {0, 1, 2}
    assert generator.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_draw_changes_nothing_of_the_generator() -> None:
    source = exchanging()
    source.next()
    before = snapshot(source.synthesizer.variable.generator)
    batch = source.next()
    assert same(before, snapshot(source.synthesizer.variable.generator))
    assert batch.label is None
    assert batch.index is None
    assert not batch.input.requires_grad
    source.learned(batch, Losses(torch.zeros(()), {}, torch.rand(6)))


def test_the_oldest_features_leave_first() -> None:
    def made(rows: Tensor) -> Made:
        held = [rows[:, None, None, None].float().expand(-1, c, 2, 2) for c in (2, 3)]
        return Made(torch.zeros(len(rows), *SPEC.shape), rows, features=held)

    exchange = FeatureExchange(RUNTIME, capacity=5, probability=1.0)
    for part in (range(3), range(3, 6), range(6, 8)):
        exchange.learn(made(torch.tensor(list(part))))
    assert sorted(exchange.labels.tolist()) == [3, 4, 5, 6, 7]
    for pool in exchange.pools:
        assert torch.equal(pool[:, 0, 0, 0].long(), exchange.labels)
    exchange.learn(made(torch.arange(9)))
    assert sorted(exchange.labels.tolist()) == [4, 5, 6, 7, 8]


def test_the_share_of_exchanged_batches() -> None:
    for probability, least, most in ((0.0, 0, 0), (0.5, 8, 32), (1.0, 40, 40)):
        source = exchanging(probability=probability)
        source.student_steps = 40
        made = [source.next().index is None for _ in range(40)]
        assert least <= sum(made) <= most
        counts = source.counts()
        assert counts["images_synthesized"] == 8 + 6 * sum(made)


def test_a_resumed_source_makes_the_same_batches() -> None:
    first = exchanging(probability=0.6)
    for _ in range(5):
        first.next()
    second = exchanging(probability=0.6)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(6):
        one, two = first.next(), second.next()
        assert torch.equal(one.input, two.input)
        assert isinstance(two, Batch)
    assert first.counts() == second.counts()
    for a, b in zip(first.streams["exchange"].pools, second.streams["exchange"].pools, strict=True):
        assert torch.equal(a, b)


def test_bf16_makes_float32_images() -> None:
    source = exchanging(Runtime(device="cpu", precision="bf16"))
    for _ in range(3):
        batch = source.next()
        assert batch.input.dtype == torch.float32
        assert batch.input.isfinite().all()


def test_what_cannot_be_exchanged() -> None:
    for settings in ({"capacity": 0}, {"probability": 1.5}):
        with pytest.raises(ValueError, match="capacity of at least 1"):
            FeatureExchange(RUNTIME, **settings)  # type: ignore[arg-type]
    ensemble = Generated(GeneratorEnsemble(SPEC, CLASSES, 2, channels=8), RUNTIME, lifetime=0)
    fresh = Generated(network(), RUNTIME, lifetime=3)
    meta = MetaGenerated(network(), RUNTIME, torch.optim.Adam)
    for variable in (Pixels(SPEC), ensemble, fresh, meta):
        with pytest.raises(ValueError, match=r"streams\.exchange: .* a Standard\w+ that lasts"):
            inversion(variable=variable, streams={"exchange": FeatureExchange(RUNTIME)})
    two = {name: FeatureExchange(RUNTIME) for name in ("one", "two")}
    with pytest.raises(ValueError, match=r"streams\.two: another stream watches"):
        generative(streams=two)


def test_it_exchanges_what_a_trained_generator_makes() -> None:
    """Of the inputs of its updates, not of those that the student gets in between."""
    exchange = FeatureExchange(RUNTIME, capacity=20, probability=0.5)
    source = generative(streams={"exchange": exchange}, student_steps=3, conditional=True)
    batches = [source.next() for _ in range(7)]
    assert exchange.added == 3 * 8
    whole = [batch.label is None for batch in batches]
    assert set(whole) == {False, True}
    assert source.counts()["images_synthesized"] == 3 * 8 + 7 * 6
    assert all(batch.input.isfinite().all() for batch in batches)
    assert not source.synthesizer.watched.latest, "what the student gets leaves nothing behind"


def test_features_of_a_compiled_generator_are_pooled_too() -> None:
    sources = [exchanging(runtime) for runtime in (RUNTIME, EagerRuntime(device="cpu"))]
    for _ in range(3):
        a, b = (source.next().input for source in sources)
        torch.testing.assert_close(a, b)
    pools = [source.streams["exchange"].pools for source in sources]
    for one, other in zip(*pools, strict=True):
        torch.testing.assert_close(one, other)
