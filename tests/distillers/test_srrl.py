"""Softmax regression representation learning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import Side
from distillers.srrl import SRRL
from models.classifier import Outputs
from tests.distillers.features import apply, random


def teacher(feature: Tensor, head: nn.Linear) -> Outputs:
    pooled = feature if feature.dim() == 2 else feature.flatten(2).mean(dim=2)
    return Outputs(head(pooled).detach(), {"a": feature})


def head(features: int = 7) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(features, 4).double().requires_grad_(False)


def loss(student: Outputs, guide: Outputs, classifier: nn.Linear, **settings: float) -> SRRL:
    made = SRRL(("a",), **settings)
    made.prepare(Side(student), Side(guide, classifier))
    return made.double().train()


def test_by_hand_on_vectors() -> None:
    student, classifier = random(0, (6, 5)), head()
    guide = teacher(random(1, (6, 7)).features["a"].abs(), classifier)
    made = loss(student, guide, classifier, regression=0.3)
    x = student.features["a"] @ made.connector[0].weight[:, :, 0].T  # type: ignore[index]
    x = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()).clamp_min(0)
    said = torch.stack([classifier(row) for row in x])
    expected = (x - guide.features["a"]).square().mean()
    expected = expected + 0.3 * (said - guide.logits).square().mean()
    torch.testing.assert_close(apply(made, student, guide), expected)


def test_maps_are_connected_before_they_are_averaged() -> None:
    student, classifier = random(0, (6, 5, 2, 2)), head()
    guide = teacher(random(1, (6, 7, 3, 3)).features["a"].abs(), classifier)
    made = loss(student, guide, classifier)
    connected = made.connector(student.features["a"].flatten(2)).mean(dim=2)
    expected = (connected - guide.features["a"].mean(dim=(2, 3))).square().mean()
    expected = expected + (classifier(connected) - guide.logits).square().mean()
    torch.testing.assert_close(apply(made, student, guide), expected)


def test_only_a_feature_that_is_never_negative_is_rectified() -> None:
    student, classifier = random(0, (6, 5)), head()
    signed = random(1, (6, 7)).features["a"]
    for feature, kind in ((signed, nn.Identity), (signed.abs(), nn.ReLU)):
        made = loss(student, teacher(feature, classifier), classifier)
        assert isinstance(made.connector[2], kind)  # type: ignore[index]


def test_the_teachers_classifier_is_live_and_not_the_losses() -> None:
    student, classifier = random(0, (6, 5)), head()
    guide = teacher(random(1, (6, 7)).features["a"], classifier)
    made = loss(student, guide, classifier)
    assert not any("head" in name for name in made.state_dict())
    before = apply(made, student, guide)
    classifier.weight.mul_(2)
    assert apply(made, student, guide) != before


def test_student_and_connector_get_gradients() -> None:
    student, classifier = random(0, (6, 5)), head()
    guide = teacher(random(1, (6, 7)).features["a"], classifier)
    made = loss(student, guide, classifier)
    feature = student.features["a"].requires_grad_()
    x = student.logits
    made(student, guide, Batch(x)).backward()
    assert feature.grad is not None
    assert feature.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_the_classifier_of_a_peer_does_not_learn() -> None:
    student, classifier = random(0, (6, 5)), head().requires_grad_(True)
    guide = teacher(random(1, (6, 7)).features["a"], classifier)
    made = loss(student, guide, classifier)
    student.features["a"].requires_grad_()
    made(student, guide, Batch(student.logits)).backward()
    assert classifier.weight.grad is None
    assert classifier.bias.grad is None


def test_mistakes() -> None:
    student, classifier = random(0, (6, 5)), head()
    guide = teacher(random(1, (6, 7)).features["a"], classifier)
    with pytest.raises(ValueError, match=r"SRRL .*the teacher's tap 'a' is another"):
        loss(student, Outputs(guide.logits + 1, guide.features), classifier)
    with pytest.raises(ValueError, match=r"SRRL .*end in a linear layer"):
        SRRL(("a",)).prepare(Side(student), Side(guide))
    with pytest.raises(ValueError, match="at least 0"):
        SRRL(regression=-1)
    with pytest.raises(ValueError, match="one tap, but has 2"):
        SRRL(("a", "b"))
