"""The patch-similarity prior against closed forms, a direct computation, and what it is for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from data.spec import InputSpec
from generators.base import Synthesis
from generators.patches import PatchSimilarity, similarities
from models.classifier import Classifier, Outputs
from tests.generators.small import Net

SPEC = InputSpec((1, 8, 8))


def loss(*taps: str, bandwidth: float = 0.05) -> PatchSimilarity:
    return PatchSimilarity(Classifier(Net(), SPEC), taps or ("a",), bandwidth)


def seen(**features: Tensor) -> Synthesis:
    return Synthesis(torch.zeros(1, 1), Outputs(torch.zeros(1, 1), features))


def test_every_two_places_are_compared_once() -> None:
    x = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    tokens = x.flatten(2)
    for i, found in enumerate(similarities(x)):
        pairs = itertools.combinations(tokens[i].T, 2)
        direct = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
        assert sorted(found.tolist()) == pytest.approx(sorted(direct))


def test_large_maps_are_pooled() -> None:
    x = torch.randn(2, 3, 28, 28)
    pooled = nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(similarities(x), similarities(pooled))
    assert similarities(x).shape == (2, 196 * 195 // 2)


@pytest.mark.parametrize("bandwidth", [0.02, 0.05, 0.2])
def test_identical_patches_have_the_entropy_of_the_kernel(bandwidth: float) -> None:
    x = torch.ones(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    value = loss(bandwidth=bandwidth)(seen(a=x))
    assert value.item() == pytest.approx(
        -0.5 * math.log(2 * math.pi * math.e * bandwidth**2), abs=1e-3
    )
    value.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_two_similarities_far_apart_add_log_2() -> None:
    """Of four places, two and two alike in such a way that half of all similarities is 1."""
    a, b = torch.eye(2, dtype=torch.float64)
    tokens = torch.stack([a, a, a, b]).T  # three pairs of 1, three of 0
    one = loss()(seen(a=torch.ones(1, 2, 2, 2, dtype=torch.float64)))
    two = loss()(seen(a=tokens.view(1, 2, 2, 2)))
    assert (one - two).item() == pytest.approx(math.log(2), abs=1e-3)


def test_it_is_the_mean_over_images_and_the_sum_over_taps() -> None:
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)
    alone = [loss()(seen(a=x[i : i + 1])) for i in (0, 1)]
    torch.testing.assert_close(loss()(seen(a=x)), torch.stack(alone).mean())
    both = loss("a", "b")(seen(a=x, b=y))
    torch.testing.assert_close(both, loss()(seen(a=x)) + loss()(seen(a=y)))


def test_tokens_are_a_map_without_its_class_token() -> None:
    x = torch.randn(2, 6, 3, 3)
    tokens = torch.cat([torch.randn(2, 1, 6), x.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(loss()(seen(a=tokens)), loss()(seen(a=x)))


def test_descent_makes_patches_differ() -> None:
    torch.manual_seed(0)
    x = (1 + 0.1 * torch.randn(2, 8, 3, 3)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    first = similarities(x).std(1).mean().item()
    for _ in range(50):
        optimizer.zero_grad()
        loss()(seen(a=x)).backward()
        optimizer.step()
    assert similarities(x).std(1).mean().item() > 5 * first


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e6])
def test_values_and_gradients_are_finite(value: float) -> None:
    x = torch.full((2, 4, 3, 3), value)
    x[:, :, 0, 0] = -value
    value = loss()(seen(a=x.requires_grad_()))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_stages_are_read_where_no_taps_are_named() -> None:
    network = Net()
    with pytest.raises(ValueError, match=r"the teacher names no stages: name the loss's taps"):
        PatchSimilarity(Classifier(network, SPEC))
    network.taps = {"stage1": "conv1", "stage2": "conv2", "pooled": "pool"}
    assert PatchSimilarity(Classifier(network, SPEC)).teacher_taps == ("stage1", "stage2")


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"bandwidth must lie in \(0, 1\], but is 0"):
        loss(bandwidth=0)
    with pytest.raises(ValueError, match="none of a has two places to compare"):
        loss()(seen(a=torch.ones(2, 3, 1, 1)))
    one = torch.randn(2, 3, 1, 1)  # the last stage of a small input: left out
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(loss("a", "b")(seen(a=x, b=one)), loss()(seen(a=x)))
