"""Accuracy, agreement and calibration, against direct formulas."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.spec import InputSpec
from data.split import Split
from engine.evaluate import BINS, Evaluator
from engine.runtime import Runtime
from models.classifier import Classifier

SPEC = InputSpec((1, 6, 6), mean=(0.4,), std=(0.3,))


def network(seed: int, scale: float = 12.0) -> Classifier:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    with torch.no_grad():
        layers[-1].weight.mul_(scale)
    classifier = Classifier(layers, SPEC)
    classifier(torch.rand(64, 1, 6, 6))  # running statistics of its own
    return classifier


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (103, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(0, 5, (103,), generator=generator), torch.device("cpu"))


def probabilities(classifier: Classifier, split: Split) -> np.ndarray:
    images, _ = split.batch(slice(0, len(split)))
    with torch.no_grad():
        logits = classifier.frozen()(images).logits.double().numpy()
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def expected_calibration_error(p: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, eq. 3, bin by bin."""
    confidence, correct = p.max(1), p.argmax(1) == labels
    edges, error = np.linspace(0, 1, BINS + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("batch_size", [7, 103, 500])
def test_metrics_are_those_of_the_formulas(batch_size: int, split: Split) -> None:
    student, teacher = network(0), network(1)
    evaluator = Evaluator(student, teacher, split, Runtime("cpu"), batch_size)
    metrics = evaluator()
    labels = split.batch(slice(0, 103))[1].numpy()
    p, q = probabilities(student, split), probabilities(teacher, split)
    assert metrics["accuracy"] == pytest.approx((p.argmax(1) == labels).mean())
    assert metrics["agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert metrics["ece"] == pytest.approx(expected_calibration_error(p, labels), abs=1e-6)
    assert evaluator.teacher_accuracy() == pytest.approx((q.argmax(1) == labels).mean())
    dealt = (q.argmax(1)[:, None] == labels).mean()  # every answer to every input
    assert evaluator.guessing_accuracy() == pytest.approx(dealt)
    assert 0 < metrics["agreement"] < 1  # or the comparison would say little
    assert metrics["ece"] > 0.05


def test_neighbouring_bins_are_kept_apart(split: Split) -> None:
    """Right in every other bin and wrong between: in no other bins is the error as large."""
    student = network(0)
    images, _ = split.batch(slice(0, 103))
    p = probabilities(student, split)
    even = np.ceil(p.max(1) * BINS).astype(int) % 2 == 0
    assert 30 < even.sum() < 73
    labels = torch.from_numpy(np.where(even, p.argmax(1), (p.argmax(1) + 1) % 5))
    alternating = Split((images * 255).round().to(torch.uint8), labels, torch.device("cpu"))
    metrics = Evaluator(student, None, alternating, Runtime("cpu"))()
    wanted = expected_calibration_error(p, labels.numpy())
    assert metrics["ece"] == pytest.approx(wanted, abs=1e-6)
    assert metrics["accuracy"] == pytest.approx(even.mean())


def test_the_student_is_seen_as_it_is_now_and_left_alone(split: Split) -> None:
    student = network(0).train()
    evaluator = Evaluator(student, None, split, Runtime("cpu"))
    first = evaluator()
    assert "agreement" not in first
    assert evaluator.teacher_accuracy() is None
    before = {k: v.clone() for k, v in student.state_dict().items()}
    evaluator()
    assert student.training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    with torch.no_grad():
        student.module[-1].bias[3] += 1000  # type: ignore[index,operator]
    labels = split.batch(slice(0, 103))[1]
    assert evaluator()["accuracy"] == pytest.approx(float((labels == 3).float().mean()))


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3), keepdim=False).sign()[:, None] * torch.tensor([50.0, -50.0])

    images = (
        torch.tensor([0, 255], dtype=torch.uint8).repeat(20).view(40, 1, 1, 1).expand(-1, 1, 6, 6)
    )
    right = torch.tensor([1, 0]).repeat(20)
    for labels, error in ((right, 0.0), (1 - right, 1.0)):
        split = Split(images, labels, torch.device("cpu"))
        metrics = Evaluator(Classifier(Sure(), SPEC), None, split, Runtime("cpu"))()
        assert metrics["ece"] == pytest.approx(error, abs=1e-6)
        assert metrics["accuracy"] == 1 - error
