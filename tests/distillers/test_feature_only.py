"""A backbone trained by features alone, and its classifier by labels alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.runtime import Runtime
from data.spec import Batch
from distillers.base import Side
from distillers.distiller import Distiller
from distillers.edges import resolve_taps, student_taps, teacher_taps
from distillers.feature_only import DetachedCrossEntropy, FeatureOnly
from engine.config import compose, plain
from engine.networks import build_network, build_objective
from engine.parts import build_dataset
from models.classifier import Classifier, Outputs
from tests.distillers.features import apply, leaves, prepared, random


def test_the_projector_is_linear_and_without_bias() -> None:
    student, teacher = random(0, (3, 4, 6, 6)), random(1, (3, 5, 3, 3))
    loss = prepared(FeatureOnly(("a",)), student, teacher)
    assert [tuple(p.shape) for p in loss.parameters()] == [(5, 4, 1)]
    weight = loss.projections[0].weight[:, :, 0]  # type: ignore[index,union-attr]
    pooled = student.features["a"].unflatten(2, (3, 2)).unflatten(4, (3, 2)).mean(dim=(3, 5))
    expected = (torch.einsum("oc,bchw->bohw", weight, pooled) - teacher.features["a"]).square()
    torch.testing.assert_close(apply(loss, student, teacher), expected.mean())
    zero = random(0, (3, 4, 6, 6))
    zero.features["a"].zero_()
    assert apply(loss, zero, teacher) == teacher.features["a"].square().mean()


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 17, 4), (2, 4)])
def test_kinds_sizes_and_gradients(shape: tuple[int, ...]) -> None:
    student, teacher = random(0, shape), random(1, (2, 4, 4, 4))
    loss = prepared(FeatureOnly(("a",)), student, teacher)
    inputs = leaves(student)
    apply(loss, student, teacher).backward()
    assert inputs[0].grad is not None
    assert inputs[0].grad.any()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())


def test_the_labels_reach_the_classifier_and_nothing_else() -> None:
    feature, label = torch.randn(4, 3, 2, 2, requires_grad=True), torch.tensor([0, 1, 4, 2])
    head = nn.Linear(3, 5)
    outputs = Outputs(head(feature.mean(dim=(2, 3))), {"a": feature})
    loss = DetachedCrossEntropy(("a",))
    loss.prepare(Side(outputs, head), None)
    assert not list(loss.parameters())
    value = loss(outputs, None, Batch(feature, label))
    expected = -outputs.logits.log_softmax(dim=1)[range(4), label].mean()
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(expected, head.weight)
    value.backward()
    torch.testing.assert_close(head.weight.grad, gradient)
    assert feature.grad is None


def test_a_head_that_reads_something_else_is_refused() -> None:
    feature, head = torch.randn(4, 3), nn.Linear(3, 5)
    with pytest.raises(ValueError, match="the student's tap 'a' is another"):
        DetachedCrossEntropy(("a",)).prepare(
            Side(Outputs(head(feature) + 1, {"a": feature}), head), None
        )
    with pytest.raises(ValueError, match="one feature"):
        DetachedCrossEntropy(("a", "b"))


def test_in_a_run_no_label_moves_the_backbone() -> None:
    """With the features' weight at 0, what is left is the classifier's gradient."""
    arguments = [
        "method=kd",
        "loss=[feature_only,detached_ce]",
        "~distiller.losses.kd",
        "device=cpu",
    ]
    config = plain(compose([*arguments, "teacher.model.width=6", "student.model.width=4"]))
    assert set(config["distiller"]["losses"]) == {"feature_only", "cross_entropy"}
    runtime = Runtime("cpu")
    dataset = build_dataset(config, runtime)
    networks = [
        build_network(config[role]["model"], dataset.shape, dataset.classes)
        for role in ("teacher", "student")
    ]
    objective = build_objective(config["distiller"], runtime=runtime, num_classes=10)
    resolve_taps(objective, networks[1], Classifier(networks[0], dataset.spec))
    teacher = Classifier(networks[0], dataset.spec, taps=teacher_taps(objective))
    assert teacher.taps == ("stage2",)
    student = Classifier(networks[1], dataset.spec, taps=student_taps(objective))
    distiller = Distiller(student, objective, teacher, runtime)
    x, label = torch.rand(8, *dataset.shape), torch.arange(8)
    gradients = []
    for weight in (0.0, 1.0):
        distiller.objective.losses["feature_only"].weight = weight  # type: ignore[assignment]
        distiller.zero_grad()
        distiller(Batch(x, label)).total.backward()
        gradients.append({n: p.grad.any().item() for n, p in networks[1].named_parameters()})  # type: ignore[union-attr]
    assert {name for name, moves in gradients[0].items() if moves} == {
        "linear.weight",
        "linear.bias",
    }
    assert all(gradients[1].values())
