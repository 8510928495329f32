"""Channel exchange against a naive loop, the pool it draws from, and rounds that use it."""

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
from generators.networks import GeneratorEnsemble, StandardGenerator
from generators.rounds import RoundSource
from generators.spaceship import FeatureExchange, exchange_channels
from generators.variables import Generated, MetaGenerated, Pixels
from tests.generators.small import CLASSES, SPEC, inversion, same, snapshot

RUNTIME = Runtime(device="cpu")


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(**kwargs: Any) -> StandardGenerator:
    torch.manual_seed(0)
    return StandardGenerator(SPEC, CLASSES, latent_size=5, channels=8, **kwargs)


def exchanging(runtime: Runtime = RUNTIME, **kwargs: Any) -> RoundSource:
    settings = {"capacity": 20, "probability": 1.0, **kwargs}
    variable = Generated(network(), runtime, lr_latent=None, lifetime=0)
    return inversion(runtime, variable=variable, exchange=FeatureExchange(runtime, **settings))


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
    source = exchanging()
    exchange = source.exchange
    passed: list[tuple[Tensor, list[Tensor]]] = []
    keep = exchange.keep

    def recorded(better: Tensor) -> None:
        passed.append((better, [f.detach().clone() for f in exchange.latest.values()]))
        keep(better)

    exchange.keep = recorded
    source.next()
    best = [features for better, features in passed if better][-1]
    assert len(passed) == 5
    for pool, feature in zip(exchange.pools, best, strict=True):
        torch.testing.assert_close(pool[:8].float(), feature, atol=1e-2, rtol=1e-3)


def test_an_exchange_draws_two_inputs_of_one_depth() -> None:
    exchange = FeatureExchange(RUNTIME, capacity=6, probability=1.0)
    generator = network()
    exchange.start(generator)
    generator(torch.randn(4, 5, generator=noise()))
    exchange.keep(torch.tensor(True))
    exchange.add(torch.arange(4))
    state, depths = torch.get_rng_state(), set()
    for seed in range(12):
        images = exchange.draw(7, noise(seed))
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
    assert exchange.images == 12 * 7
    assert generator.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_draw_changes_nothing_of_the_generator() -> None:
    source = exchanging()
    source.next()
    before = snapshot(source.variable.generator)
    batch = source.next()
    assert same(before, snapshot(source.variable.generator))
    assert batch.label is None
    assert batch.index is None
    assert not batch.input.requires_grad
    source.learned(batch, Losses(torch.zeros(()), {}, torch.rand(6)))


def test_the_oldest_features_leave_first() -> None:
    exchange = FeatureExchange(RUNTIME, capacity=5, probability=1.0)
    for part in (range(3), range(3, 6), range(6, 8)):
        rows = torch.tensor(list(part))
        exchange.best = [rows[:, None, None, None].float().expand(-1, c, 2, 2) for c in (2, 3)]
        exchange.add(rows)
    assert sorted(exchange.labels.tolist()) == [3, 4, 5, 6, 7]
    for pool in exchange.pools:
        assert torch.equal(pool[:, 0, 0, 0].long(), exchange.labels)
    exchange.best = [torch.arange(9.0)[:, None, None, None].expand(9, c, 2, 2) for c in (2, 3)]
    exchange.add(torch.arange(9))
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
    for a, b in zip(first.exchange.pools, second.exchange.pools, strict=True):
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
    ensemble = Generated(GeneratorEnsemble(SPEC, CLASSES, 2, channels=8), RUNTIME)
    for variable in (Pixels(SPEC), ensemble):
        with pytest.raises(ValueError, match="a StandardGenerator"):
            inversion(variable=variable, exchange=FeatureExchange(RUNTIME))
    fresh = Generated(network(), RUNTIME, lifetime=3)
    with pytest.raises(ValueError, match=r"use source\.variable\.lifetime=0"):
        inversion(variable=fresh, exchange=FeatureExchange(RUNTIME))
    meta = MetaGenerated(network(), RUNTIME, torch.optim.Adam)
    source = inversion(variable=meta, exchange=FeatureExchange(RUNTIME))
    with pytest.raises(ValueError, match=r"use generators\.variables\.Generated"):
        source.next()


def test_a_worse_iteration_does_not_take_the_place_of_a_better_one() -> None:
    exchange = FeatureExchange(RUNTIME, capacity=4)
    generator = network()
    exchange.start(generator)
    kept = []
    for seed, better in enumerate((True, False, True, False)):
        generator(torch.randn(3, 5, generator=noise(seed)))
        latest = [feature.detach().clone() for feature in exchange.latest.values()]
        kept = latest if better else kept
        exchange.keep(torch.tensor(better))
        for held, expected in zip(exchange.best, kept, strict=True):
            assert torch.equal(held, expected)
