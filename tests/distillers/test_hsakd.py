"""Self-supervised distillation: turned inputs through both networks, heads on every stage."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.distiller import Distiller
from distillers.edges import resolve_taps, student_taps
from distillers.hsakd import HSAKD, auxiliary_classifier
from models.classifier import Classifier
from models.digits import DigitsCNN

SPEC = InputSpec((1, 8, 8))
CLASSES = 3


def make(**options: Any) -> tuple[Distiller, HSAKD]:
    torch.manual_seed(0)
    runtime = Runtime("cpu")
    loss = HSAKD(CLASSES, SPEC, runtime, **options)
    objective = Objective({"hsakd": Weighted(loss)})
    teacher = Classifier(DigitsCNN(1, CLASSES, width=6), SPEC).eval()
    network = DigitsCNN(1, CLASSES, width=4)
    resolve_taps(objective, network, teacher)
    student = Classifier(network, SPEC, taps=student_taps(objective))
    distiller = Distiller(student, objective, teacher, runtime)
    return distiller, loss


def make_batch(seed: int = 0, count: int = 5) -> Batch:
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Batch(x, torch.arange(count) % CLASSES)


def joint_logits(classifier: Any, features: list[Tensor]) -> Tensor:
    return classifier(torch.cat(features))  # type: ignore[no-any-return]


def soft(s: Tensor, t: Tensor, tau: float) -> Tensor:
    p, q = (t / tau).softmax(1), (s / tau).softmax(1)
    return tau**2 * (p * (p.log() - q.log())).sum(1).mean()


def test_by_hand() -> None:
    distiller, loss = make(temperature=2.0)
    batch = make_batch()
    assert distiller.teacher is not None
    turns = [batch.input] + [torch.rot90(batch.input, k, (2, 3)) for k in (1, 2, 3)]
    found = distiller(batch).total
    straight, turned = distiller.student(turns[0]), distiller.student(torch.cat(turns[1:]))
    heads: Any = loss.classifiers
    theirs = [distiller.teacher(x) for x in turns]
    p_s = torch.cat([straight.logits, turned.logits])
    expected = soft(p_s, torch.cat([x.logits for x in theirs]), 2.0)
    assert batch.label is not None
    label = torch.cat([4 * batch.label + k for k in range(4)])
    for i, tap in enumerate(("stage1", "stage2")):
        q_s = joint_logits(heads["student"][i], [straight.features[tap], turned.features[tap]])
        q_t = joint_logits(heads["teacher"][i], [x.features[tap] for x in theirs])
        expected = expected + soft(q_s, q_t, 2.0) + F.cross_entropy(q_t, label)
    torch.testing.assert_close(found, expected)


def test_every_part_learns_from_what_it_should() -> None:
    distiller, loss = make()
    distiller(make_batch()).total.backward()
    for p in distiller.parameters():
        assert p.grad is not None
        assert p.grad.isfinite().all()
        assert p.grad.any() or p.dim() == 1
    assert distiller.teacher is not None
    assert not any(p.requires_grad for p in distiller.teacher.parameters())
    held = {id(p) for p in distiller.teacher.parameters()} | {
        id(p) for p in distiller.student.parameters()
    }
    assert not held & {id(p) for p in loss.parameters()}
    assert not any("networks" in name for name in distiller.state_dict())


def test_at_first_only_the_teachers_classifiers_learn() -> None:
    distiller, loss = make(pretraining=0.2)
    for progress, transfers in ((0.0, False), (0.19, False), (0.2, True), (1.0, True)):
        distiller.zero_grad()
        distiller.objective.at(progress)
        distiller(make_batch()).total.backward()
        for p in distiller.student.parameters():
            assert p.grad is not None
        assert any(p.grad.any() for p in distiller.student.parameters()) == transfers  # type: ignore[union-attr]
        assert any(p.grad.any() for p in loss.classifiers["student"].parameters()) == transfers  # type: ignore[union-attr]
        assert all(p.grad.any() for p in loss.classifiers["teacher"].parameters() if p.dim() > 1)  # type: ignore[union-attr]


def test_the_teachers_classifiers_do_not_come_to_meet_the_student() -> None:
    gradients = []
    for progress in (0.0, 1.0):
        distiller, loss = make()
        distiller.objective.at(progress)
        distiller(make_batch()).total.backward()
        gradients.append([p.grad for p in loss.classifiers["teacher"].parameters()])
    torch.testing.assert_close(*gradients)


def test_the_teachers_classifiers_learn_class_and_turn() -> None:
    distiller, loss = make(pretraining=0.5)
    batch = make_batch(count=3)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    distiller.objective.at(0.0)
    values = []
    for _ in range(60):
        total = distiller(batch).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.3 * values[0]


def test_state_survives() -> None:
    first, _ = make()
    first(make_batch(count=5)).total.backward()
    second, _ = make()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(make_batch(1)).total, second(make_batch(1)).total)


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_of_one_class_at_a_gap_of_500(count: int) -> None:
    distiller, _ = make()
    head: Any = distiller.student.module.get_submodule("linear")
    torch.nn.init.normal_(head.weight, std=1e4)
    x = make_batch(count=count).input
    losses = distiller(Batch(x, torch.zeros(count, dtype=torch.long)))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


def test_classifiers_are_shorter_on_later_stages() -> None:
    x = torch.rand(2, 5, 8, 8)
    deep, last = auxiliary_classifier(5, 7, 2, 12), auxiliary_classifier(5, 7, 0, 12)
    assert deep(x).shape == last(x).shape == (2, 12)
    assert deep[:6](x).shape == (2, 7, 2, 2)
    assert last[:3](x).shape == (2, 7, 8, 8)


def test_errors() -> None:
    runtime = Runtime("cpu")
    with pytest.raises(ValueError, match="must be square"):
        HSAKD(CLASSES, InputSpec((1, 8, 6)), runtime)
    with pytest.raises(ValueError, match="pretraining"):
        HSAKD(CLASSES, SPEC, runtime, pretraining=1.0)
    with pytest.raises(ValueError, match="temperature"):
        HSAKD(CLASSES, SPEC, runtime, temperature=0.0)
