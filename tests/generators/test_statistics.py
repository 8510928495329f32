"""The loss of BatchNorm statistics against its formula, and whole cycles with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.linalg import vector_norm

from generators.base import Synthesis
from generators.losses import BatchNormStatistics
from models import recording
from models.classifier import Outputs, Statistics
from tests.cycles import of_method
from tests.waits import Launches

SIZES = (2, 5, 3)


def noise(seed: int) -> list[Tensor]:
    """A mean and a variance for each layer in turn."""
    draws = torch.Generator().manual_seed(seed)
    return [torch.rand(n, generator=draws, dtype=torch.float64) for n in SIZES for _ in range(2)]


def synthesis(found: list[Tensor], known: list[Tensor]) -> Synthesis:
    pairs = zip(found[::2], found[1::2], known[::2], known[1::2], strict=True)
    return Synthesis(
        torch.zeros(1), Outputs(torch.zeros(1, 1), statistics=[Statistics(*p) for p in pairs])
    )


def by_formula(loss: BatchNormStatistics, given: Synthesis) -> Tensor:
    """One layer after the other, with autograd's own norms."""
    layers = given.teacher.statistics
    earlier = loss.earlier or [x for layer in layers for x in (layer.mean, layer.variance)]
    m, total = loss.momentum, torch.zeros(())
    for i, layer in enumerate(layers):
        mean = (1 - m) * layer.mean + m * earlier[2 * i]
        variance = (1 - m) * layer.variance + m * earlier[2 * i + 1]
        gap = vector_norm(mean - layer.running_mean)
        gap = gap + vector_norm(variance - layer.running_variance)
        total = total + gap * (loss.first_layer_weight if i == 0 else 1)
    return total


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("first_layer_weight", [0.0, 1.0, 10.0])
def test_the_loss_and_its_gradient(momentum: float, first_layer_weight: float) -> None:
    loss = BatchNormStatistics(first_layer_weight, momentum)
    loss.commit(synthesis(noise(2), noise(1)))
    assert len(loss.earlier) == (6 if momentum else 0)
    found = [x.requires_grad_() for x in noise(0)]
    given = synthesis(found, noise(1))
    value, expected = loss(given), by_formula(loss, given)
    torch.testing.assert_close(value, expected)
    slopes = [torch.autograd.grad(v, found) for v in (value, expected)]
    torch.testing.assert_close(*slopes)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *x: loss(synthesis([*x], noise(1))), found)


@pytest.mark.parametrize("first_layer_weight", [0.0, 1.0, 10.0])
def test_the_divergence_of_normal_distributions(first_layer_weight: float) -> None:
    loss = BatchNormStatistics(first_layer_weight, distance="kl")
    found, known = [x.requires_grad_() for x in noise(0)], noise(1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(0, len(found), 2):
        of = Normal(found[i], (found[i + 1] + 1e-5).sqrt())
        to = Normal(known[i], (known[i + 1] + 1e-5).sqrt())
        total = total + kl_divergence(of, to).sum() * (1 if i else first_layer_weight)
    value = loss(synthesis(found, known))
    torch.testing.assert_close(value, total)
    slopes = [torch.autograd.grad(v, found, materialize_grads=True) for v in (value, total)]
    torch.testing.assert_close(*slopes)


def test_the_divergence_does_not_depend_on_scale_and_bears_channels_that_are_always_zero() -> None:
    loss, found, known = BatchNormStatistics(distance="kl"), noise(0), noise(1)
    factors = [1000.0, 1e6] * len(SIZES)
    scaled = [[f * x for f, x in zip(factors, xs, strict=True)] for xs in (found, known)]
    torch.testing.assert_close(
        loss(synthesis(*scaled)), loss(synthesis(found, known)), rtol=1e-2, atol=0.0
    )
    dead = [torch.zeros(n, requires_grad=True) for n in SIZES for _ in range(2)]
    value = loss(synthesis(dead, [torch.zeros_like(x) for x in dead]))
    slopes = torch.autograd.grad(value, dead)
    assert value.item() == 0
    assert all(slope.isfinite().all() for slope in slopes)


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distance 'js' is none of: l2, kl"):
        BatchNormStatistics(distance="js")


def test_the_gradient_of_a_gap_of_zero_is_zero() -> None:
    found, known = [x.requires_grad_() for x in noise(0)], noise(0)
    known[1] = known[1] - torch.tensor([3.0, 4.0])
    value = BatchNormStatistics()(synthesis(found, known))
    slopes = torch.autograd.grad(value, found)
    torch.testing.assert_close(slopes[1], torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert not any(slope.any() for i, slope in enumerate(slopes) if i != 1)
    assert value.item() == pytest.approx(5)


@pytest.mark.parametrize("distance", ["l2", "kl"])
def test_more_layers_take_no_more_calls(distance: str) -> None:
    counts = []
    for copies in (1, 5):
        found = [x.requires_grad_() for _ in range(copies) for x in noise(0)]
        with Launches() as launches:
            value = BatchNormStatistics(distance=distance)(synthesis(found, noise(1) * copies))
            torch.autograd.grad(value, found)
        counts.append(launches.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("method", ["dfq", "fast_dfkd"])
def test_cycles_of_a_method_with_the_formula_have_the_same_losses(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report() -> dict[str, float]:
        cycles = of_method(method)
        for _ in range(2):
            cycles.run()
        return {k: float(v) for k, v in cycles.training.parts.source.report().items()}

    def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
        used.append(x)
        dims = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(x, dims, correction=0)
        return mean, variance

    used: list[Tensor] = []
    found = report()
    monkeypatch.setattr(recording, "mean_and_variance", mean_and_variance)
    monkeypatch.setattr(BatchNormStatistics, "forward", by_formula)
    assert report() == pytest.approx(found, rel=1e-5, abs=1e-6)
    assert "bn" in found
    assert used
