"""ZSKD's targets: Dirichlet by class similarity, and inputs that meet them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from generators.base import Synthesis
from generators.dirichlet import DirichletTargets, SoftTarget, class_similarity
from generators.rounds import draw_classes
from models.classifier import Classifier, Outputs
from tests.generators.small import CLASSES, SPEC, inversion, objective, teacher


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_similarity_is_the_scaled_cosine_of_the_last_layers_weights() -> None:
    weight = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, -3.0]])
    found = class_similarity(weight)
    root = 0.5**0.5
    assert torch.allclose(found.diagonal(), torch.ones(3))
    assert found[0, 1].item() == pytest.approx(root)  # of cosines 1, root, 0
    assert found[1, 0].item() == pytest.approx((2 * root) / (1 + root))  # of root, 1, -root
    assert found[0, 2].item() == pytest.approx(1e-3)


def test_targets_have_the_mean_of_their_dirichlet() -> None:
    targets = DirichletTargets(teacher(), CLASSES, scales=(1.0,))
    label = torch.full((20_000,), 2)
    state = torch.get_rng_state()
    y = targets(label, noise())
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(y.sum(1), torch.ones(len(y)))
    alpha = targets.concentration[2]
    torch.testing.assert_close(y.mean(0), alpha / alpha.sum(), atol=0.01, rtol=0)
    total = alpha.sum()
    share = alpha / total
    torch.testing.assert_close(y.var(0), share * (1 - share) / (total + 1), atol=0.01, rtol=0)
    assert torch.equal(y, targets(label, noise()))


def test_a_smaller_scale_gives_targets_nearer_to_one_class() -> None:
    targets = DirichletTargets(teacher(), CLASSES, scales=(1.0, 0.1))
    y = targets(draw_classes(4000, CLASSES, noise(1)), noise())
    assert y[1::2].amax(1).mean() > y[::2].amax(1).mean() + 0.1


def test_inputs_meet_their_targets() -> None:
    """The cross-entropy comes near to the entropy of the targets, below which it cannot go."""
    targets = DirichletTargets(teacher(), CLASSES)(draw_classes(8, CLASSES, noise(3)), noise())
    floor = -(targets * targets.clamp(min=1e-12).log()).sum(1).mean()
    gaps = []
    for iterations in (1, 200):
        source = inversion(
            objective=objective(target=SoftTarget(1.0)),
            targets=lambda label, noise: targets,
            iterations=iterations,
        )
        source.next()
        gaps.append((source.report()["target"] - floor).item())
    assert 0 <= gaps[1] < 0.75 * gaps[0]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match=r"name synthesizer\.targets"):
        inversion(objective=objective(target=SoftTarget())).next()
    convolutional = Classifier(nn.Sequential(nn.Conv2d(1, CLASSES, 8), nn.Flatten()), SPEC)
    with pytest.raises(ValueError, match="no linear layer with 4 outputs"):
        DirichletTargets(convolutional, CLASSES)
    with pytest.raises(ValueError, match="above 0"):
        DirichletTargets(teacher(), CLASSES, scales=(0.0,))
    with pytest.raises(ValueError, match="above 0"):
        SoftTarget(0.0)


def test_the_answer_is_softened_and_the_target_is_not() -> None:
    torch.manual_seed(0)
    logits, target = 5 * torch.randn(6, CLASSES), torch.rand(6, CLASSES).softmax(1)
    seen = Synthesis(torch.zeros(6, *SPEC.shape), Outputs(logits), target=target)
    by_hand = -(target * (logits / 20).softmax(1).log()).sum(1).mean()
    torch.testing.assert_close(SoftTarget(20.0)(seen), by_hand)
