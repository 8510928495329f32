"""What rounds optimise, against autograd and against what the papers say."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.runtime import Runtime
from generators.base import Synthesis
from generators.losses import Adversarial, BatchNormStatistics, OneHot
from generators.networks import StandardGenerator
from generators.rounds import draw_classes
from generators.variables import Generated, MetaGenerated, NoisyLayer, one_hot
from models.classifier import Outputs, Statistics
from tests.generators.small import CLASSES, SPEC, inversion, objective, same, snapshot, teacher

SGD = functools.partial(torch.optim.SGD, lr=0.5)


def network(**kwargs: Any) -> StandardGenerator:
    torch.manual_seed(4)
    return StandardGenerator(SPEC, CLASSES, latent_size=5, channels=8, **kwargs)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def meta(**kwargs: Any) -> MetaGenerated:
    return MetaGenerated(network(), Runtime(device="cpu"), SGD, **kwargs)


def adapt(variable: MetaGenerated, iterations: int, lr: float) -> list[list[Tensor]]:
    """A round by hand with plain SGD; gives the gradients met on the way."""
    label = draw_classes(8, CLASSES, noise())
    optimizer = torch.optim.SGD(variable.begin(label, 0, noise(1)), lr=lr)
    met = []
    for _ in range(iterations):
        images, _ = variable()
        nn.functional.cross_entropy(teacher()(images).logits, label).backward()
        variable.after_backward()
        met.append([p.grad.clone() for p in variable.adapted.parameters()])
        optimizer.step()
        optimizer.zero_grad()
        variable.after_step()
    return met


def test_fomaml_is_mamls_gradient_without_second_derivatives() -> None:
    """Through one inner step by autograd: d L(θ − α g(θ)) / dθ with g held constant is what θ'
    meets at its second look, and the authors add what it meets at its first."""
    lr = 0.1
    variable = meta(lr_latent=None)
    start = {k: p.detach().clone() for k, p in variable.generator.named_parameters()}
    adapt(variable, 2, lr)
    found = [p.grad.clone() for p in variable.generator.parameters()]

    label = draw_classes(8, CLASSES, noise())
    theta = {k: p.clone().requires_grad_() for k, p in start.items()}
    fresh = network().train()
    latent = torch.randn(8, 5, generator=noise(1))

    def loss(weights: dict[str, Tensor]) -> Tensor:
        images = torch.func.functional_call(fresh, weights, (latent,))
        return nn.functional.cross_entropy(teacher()(images).logits, label)

    first = torch.autograd.grad(loss(theta), list(theta.values()))
    adapted = {k: p - lr * g for (k, p), g in zip(theta.items(), first, strict=True)}
    second = torch.autograd.grad(loss(adapted), list(theta.values()))
    for ours, a, b in zip(found, first, second, strict=True):
        torch.testing.assert_close(ours, a + b, rtol=1e-4, atol=1e-6)

    variable.end()
    for (name, p), gradient in zip(variable.generator.named_parameters(), found, strict=True):
        torch.testing.assert_close(p.detach(), start[name] - 0.5 * gradient)
        assert p.grad is None


def test_a_meta_round_starts_from_the_kept_weights_and_is_saved_with_its_optimizer() -> None:
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    variable = MetaGenerated(network(), Runtime(device="cpu"), adam)
    adapt(variable, 2, 0.1)
    variable.end()
    other = MetaGenerated(network(), Runtime(device="cpu"), adam)
    other.load_state_dict(copy.deepcopy(variable.state_dict()))
    for v in (variable, other):
        adapt(v, 2, 0.1)
        v.end()
    assert same(snapshot(variable.generator), snapshot(other.generator))
    keys = {k for k in variable.state_dict() if not k.startswith("generator.")}
    assert keys == {"_extra_state"}


def test_the_layer_is_reset_once() -> None:
    variable = meta(reset_round=2)
    before = variable.generator.linear.weight.clone()
    for index, changes in ((0, False), (2, True), (3, False)):
        variable.begin(draw_classes(4, CLASSES, noise()), index, noise(index))
        assert torch.equal(variable.generator.linear.weight, before) is not changes
        before = variable.generator.linear.weight.clone()


def test_the_layer_is_reset_alike_on_every_rank() -> None:
    """The noise of a round is each rank's own."""
    ranks = [meta(reset_round=1) for _ in range(2)]
    for rank, variable in enumerate(ranks):
        variable.begin(draw_classes(4, CLASSES, noise()), 1, noise(rank))
    one, two = (variable.generator.linear.weight for variable in ranks)
    assert torch.equal(one, two)


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"no layer 'l1'; it has: linear, stages"):
        meta(reset_layer="l1")
    with pytest.raises(ValueError, match=r"generator\.conditional=false"):
        NoisyLayer(network(conditional=True), one_hot(CLASSES), Runtime(device="cpu"))


def test_a_generator_is_drawn_anew_at_the_end_of_its_life_without_global_randomness() -> None:
    variable = Generated(network(), Runtime(device="cpu"), lifetime=2)
    state, before = torch.get_rng_state(), None
    for index, fresh in ((0, True), (1, False), (2, True)):
        groups = variable.begin(draw_classes(4, CLASSES, noise()), index, noise(index))
        weights = [p.detach().clone() for p in variable.generator.parameters()]
        if before is not None:
            convolution = list(variable.generator.stages)[1].weight
            at = [p is convolution for p in variable.generator.parameters()].index(True)
            assert torch.equal(weights[at], before[at]) is not fresh
        before = weights
        assert groups[1]["lr"] == 1e-3
        assert groups[1]["params"][0] is variable.latent
    assert torch.equal(torch.get_rng_state(), state)


def test_latents_are_optimised_too() -> None:
    for rate, moves in ((0.1, True), (None, False)):
        variable = Generated(network(), Runtime(device="cpu"), lr_latent=rate)
        source = inversion(variable=variable, objective=objective(one_hot=OneHot()))
        drawn: list[Tensor] = []
        variable.register_forward_hook(lambda v, *_: drawn.append(v.latent.detach().clone()))  # noqa: B023
        source.next()
        assert torch.equal(drawn[0], drawn[-1]) is not moves


def noisy(lifetime: int = 2) -> NoisyLayer:
    return NoisyLayer(network(), one_hot(CLASSES), Runtime(device="cpu"), lifetime)


def test_a_noisy_layer_gives_each_class_one_image() -> None:
    variable = noisy()
    label = draw_classes(10, CLASSES, noise())
    groups = variable.begin(label, 0, noise())
    assert groups[1]["params"][0].shape == (3, CLASSES + 1, 5)  # three layers for ten images
    _, latent = variable()
    for i in range(10):
        weight = variable.weight[i // CLASSES]
        expected = variable.embeddings[label[i]] @ weight[:-1] + weight[-1]
        torch.testing.assert_close(latent[i], expected)
    assert len(latent.unique(dim=0)) == 10


def test_the_noisy_layer_is_new_each_round_and_the_generator_is_not() -> None:
    variable = noisy(lifetime=0)
    label = draw_classes(8, CLASSES, noise())
    variable.begin(label, 0, noise(0))
    weight, kept = variable.weight.clone(), snapshot(variable.generator)
    variable.begin(label, 1, noise(1))
    assert not torch.equal(variable.weight, weight)
    assert same(kept, snapshot(variable.generator))


def test_the_noise_is_of_standard_normal_weights_without_a_bias() -> None:
    variable = NoisyLayer(network(), torch.rand(CLASSES, 300), Runtime(device="cpu"))
    variable.begin(draw_classes(40, CLASSES, noise()), 0, noise())
    assert variable.weight[:, :-1].std().item() == pytest.approx(1.0, abs=0.03)
    assert not variable.weight[:, -1].any()


def test_embeddings_are_normalised_over_the_classes() -> None:
    embeddings = torch.rand(6, 4, generator=noise()) * 3 + 1
    variable = NoisyLayer(network(), embeddings, Runtime(device="cpu"))
    bn = nn.BatchNorm1d(4, affine=False)
    torch.testing.assert_close(variable.embeddings, bn(embeddings), rtol=1e-3, atol=1e-4)
    assert "embeddings" not in variable.state_dict()


@pytest.mark.parametrize("kind", ["generated", "meta", "noisy"])
def test_a_round_lowers_the_objective(kind: str) -> None:
    runtime = Runtime(device="cpu")
    totals = []
    for iterations in (1, 100):
        variable = {
            "generated": lambda: Generated(network(), runtime),
            "meta": lambda: meta(),
            "noisy": noisy,
        }[kind]()
        source = inversion(
            variable=variable,
            iterations=iterations,
            objective=objective(one_hot=OneHot(), bn=BatchNormStatistics(momentum=0.9)),
            optimizer=functools.partial(torch.optim.Adam, lr=1e-2),
        )
        source.next()
        totals.append(sum(v.item() for v in source.report().values()))
    assert totals[1] < 0.9 * totals[0]


def test_statistics_remember_earlier_rounds_by_an_ema() -> None:
    loss = BatchNormStatistics(momentum=0.75)
    source = inversion(objective=objective(bn=loss), iterations=3, student_steps=1)
    seen: list[Tensor] = []
    commit = loss.commit

    def recorded(synthesis: Any) -> None:
        seen.append(synthesis.teacher.statistics[1].mean.clone())
        commit(synthesis)

    loss.commit = recorded
    for _ in range(3):
        source.next()
    expected = seen[0]
    for mean in seen[1:]:
        expected = 0.75 * expected + 0.25 * mean
    torch.testing.assert_close(loss.earlier[2], expected)
    fresh = BatchNormStatistics(momentum=0.75)
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(fresh.earlier[2], expected)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\)"):
        BatchNormStatistics(momentum=1.0)


def test_the_statistics_of_a_checkpoint_go_to_the_device_once() -> None:
    loss, x = BatchNormStatistics(momentum=0.5), torch.ones(3)
    loss.load_state_dict({"_extra_state": [x, x]})
    there = [Statistics(*[x.to("meta")] * 4)]
    loss(Synthesis(x, Outputs(x, statistics=there)))
    assert [y.device.type for y in loss.earlier] == ["meta", "meta"]


def test_the_moving_statistics_are_what_is_drawn_to_the_running_ones() -> None:
    loss = BatchNormStatistics(momentum=0.5)
    source = inversion(objective=objective(bn=loss, adv=Adversarial()), iterations=1)
    source.next()
    images = torch.rand(8, *SPEC.shape, generator=noise())
    view = teacher().frozen(statistics=True)
    outputs = view(images)
    by_hand = sum(
        (0.5 * s.mean + 0.5 * m - s.running_mean).norm()
        + (0.5 * s.variance + 0.5 * v - s.running_variance).norm()
        for s, m, v in zip(outputs.statistics, loss.earlier[::2], loss.earlier[1::2], strict=True)
    )
    losses = source.synthesizer.observe(images, None)
    torch.testing.assert_close(losses.values["bn"], by_hand)
