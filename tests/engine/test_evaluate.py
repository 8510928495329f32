"""Accuracy, agreement and calibration, against direct formulas."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.runtime import Runtime
from data.spec import InputSpec
from data.split import Split
from engine.evaluate import BINS, Evaluator
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


@pytest.mark.parametrize("batch_size", [7, 500])
def test_class_by_class(batch_size: int, split: Split) -> None:
    student, teacher = network(0), network(1)
    found = Evaluator(student, teacher, split, Runtime("cpu"), batch_size).measure()
    labels = split.batch(slice(0, 103))[1].numpy()
    p, q = probabilities(student, split), probabilities(teacher, split).argmax(1)
    predicted = p.argmax(1)
    assert (found.inputs, found.reference) == (103, "label")
    for c, row in enumerate(found.classes):
        inside = labels == c
        assert row["inputs"] == inside.sum()
        assert row["accuracy"] == pytest.approx((predicted == c)[inside].mean())
        assert row["agreement"] == pytest.approx((predicted == q)[inside].mean())
        assert row["confidence"] == pytest.approx(p.max(1)[inside].mean(), abs=1e-6)
    matrix = np.zeros((5, 5), int)
    np.add.at(matrix, (labels, predicted), 1)
    wanted = [[a, b, n] for (a, b), n in np.ndenumerate(matrix) if n]
    assert found.confusion == wanted
    headline = Evaluator(student, teacher, split, Runtime("cpu"), batch_size)()
    assert headline == {k: getattr(found, k) for k in ("accuracy", "ece", "agreement")}
    assert found.teacher_accuracy == pytest.approx((q == labels).mean())
    assert found.ece_to_teacher is None


def test_without_labels_only_agreement_is_known(split: Split) -> None:
    student, teacher = network(0), network(1)
    images = (split.batch(slice(0, 103))[0] * 255).round().to(torch.uint8)
    blind = Split(images, None, torch.device("cpu"))
    evaluator = Evaluator(student, teacher, blind, Runtime("cpu"), 50)
    p, q = probabilities(student, split), probabilities(teacher, split).argmax(1)
    figures = evaluator()
    assert set(figures) == {"agreement", "ece_to_teacher"}
    assert figures["agreement"] == pytest.approx((p.argmax(1) == q).mean())
    assert figures["ece_to_teacher"] == pytest.approx(expected_calibration_error(p, q), abs=1e-6)
    found = evaluator.measure()
    assert (found.accuracy, found.ece, found.teacher_accuracy) == (None, None, None)
    assert found.reference == "teacher"
    assert [row["inputs"] for row in found.classes] == np.bincount(q, minlength=5).tolist()
    assert all(row["accuracy"] is None for row in found.classes)
    alone = Evaluator(student, None, blind, Runtime("cpu"))
    assert alone() == {}
    with pytest.raises(ValueError, match="the data has no labels"):
        alone.measure()


def test_a_class_without_an_input_has_no_means(split: Split) -> None:
    one = Split(torch.zeros(3, 1, 6, 6, dtype=torch.uint8), torch.tensor([2, 2, 2]), split.device)
    rows = Evaluator(network(0), None, one, Runtime("cpu")).measure().classes
    assert [row["inputs"] for row in rows] == [0, 0, 3, 0, 0]
    assert rows[0] == {"inputs": 0, "accuracy": None, "agreement": None, "confidence": None}


def test_answers_that_are_not_finite_are_no_measurement(split: Split) -> None:
    student = network(0)
    with torch.no_grad():
        student.module[-1].bias[3] = float("nan")  # type: ignore[index,operator]
    with pytest.raises(ValueError, match="answers to 103 of 103 inputs are not finite"):
        Evaluator(student, None, split, Runtime("cpu")).measure()


def test_one_pass_brings_one_row_of_figures_from_the_device(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(network(0), network(1), split, Runtime("cpu"), 7)
    transfers = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: transfers.append(t.numel()) or to_list(t))
    for name in ("item", "__float__", "__bool__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, None)
    assert len(evaluator()) == 3
    assert transfers == [4]
