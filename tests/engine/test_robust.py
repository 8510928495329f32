"""Accuracy under attack: known for a linear classifier, and the same on any number of processes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine.robust
from core.runtime import Runtime
from data.builtin import digits
from data.spec import InputSpec
from data.split import Split
from distillers.attacks import pgd
from engine.config import compose
from engine.metrics import build_metrics
from engine.robust import robust_accuracy
from models.classifier import Classifier
from models.meter import Meter

SPEC = InputSpec((1, 6, 6))


def linear() -> Classifier:
    """Two classes, told apart by the sign of w·x + b."""
    torch.manual_seed(0)
    layer = nn.Linear(36, 2)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.weight[1] = torch.randn(36)
        layer.bias.copy_(torch.tensor([0.0, -0.5 * float(layer.weight[1].sum())]))
    return Classifier(nn.Sequential(nn.Flatten(), layer), SPEC)


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(60, 196, (103, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(0, 2, (103,), generator=generator), torch.device("cpu"))


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("batch_size", [10, 500])
def test_a_linear_classifier_falls_where_its_margin_is_too_small(
    norm: str, batch_size: int, split: Split
) -> None:
    """At |w·x + b| < ε·‖w‖ in the dual norm; no input comes near the range's ends."""
    network = linear()
    x, label = split.batch(slice(0, 103))
    assert label is not None
    scores = network(x).logits
    margin = (scores[:, 1] - scores[:, 0]) * (2 * label - 1)
    weight = network.module[1].weight[1]  # type: ignore[index]
    dual, epsilon = (weight.abs().sum(), 0.02) if norm == "inf" else (weight.norm(), 0.1)
    expected = (margin > epsilon * dual).float().mean().item()
    found = robust_accuracy(network, split, Runtime("cpu"), epsilon, norm, 20, batch_size)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.05 < found < (margin > 0).float().mean() - 0.05


def convolutional() -> Classifier:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    network = Classifier(layers, SPEC, meter=Meter())
    network(torch.rand(64, 1, 6, 6))
    return network


def test_the_network_stays_as_it_is(split: Split) -> None:
    network = convolutional().train()
    before, queries = copy.deepcopy(network.state_dict()), network.meter.queries  # type: ignore[union-attr]
    torch.set_grad_enabled(False)  # as evaluation is called
    try:
        first = robust_accuracy(network, split, Runtime("cpu"), 0.02, steps=3)
    finally:
        torch.set_grad_enabled(True)
    assert network.training
    assert network.meter.queries == queries  # type: ignore[union-attr]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    torch.manual_seed(7)
    assert robust_accuracy(network, split, Runtime("cpu", seed=3), 0.02, steps=3) == first


def test_ranks_share_the_split(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    network, seeds = convolutional(), []

    def noted(*args: Any) -> Tensor:
        seeds.append(args[-1].initial_seed())
        return pgd(*args)

    monkeypatch.setattr(engine.robust, "pgd", noted)
    runtime = Runtime("cpu")
    whole = robust_accuracy(network, split, runtime, 0.03, steps=3, batch_size=10)
    assert seeds == [*range(11)]
    monkeypatch.setattr(runtime, "sum", lambda x: x)
    runtime.world_size, seeds[:], parts = 3, [], []
    for runtime.rank in range(3):
        parts.append(robust_accuracy(network, split, runtime, 0.03, steps=3, batch_size=10))
    assert sum(parts) == pytest.approx(whole)
    assert min(parts) > 0
    assert seeds == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8]  # of a batch's place, whoever takes it


def test_labels_are_needed(split: Split) -> None:
    unlabelled = Split(split._images, None, torch.device("cpu"))
    with pytest.raises(ValueError, match="needs labels"):
        robust_accuracy(linear(), unlabelled, Runtime("cpu"), 0.1)


def test_a_metric_that_needs_labels_is_refused_before_a_run_without_any() -> None:
    config = compose(["method=pgd_at"])
    labelled = digits(Runtime("cpu")).open("test")
    assert set(build_metrics(config, labelled)) == {"robust_accuracy"}
    bare = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"leave it out, with ~metrics.robust_accuracy"):
        build_metrics(config, bare)
    assert not build_metrics(compose(["method=pgd_at", "~metrics.robust_accuracy"]), bare)
