"""CA-MKD's loss on features: weights by how right the student is in each teacher's place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import Batch
from distillers.base import Side
from distillers.confidence import ConfidentHints
from distillers.distiller import Distiller
from distillers.edges import resolve_taps, taps_of
from distillers.step import Edge, Ref
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN
from tests.distillers.features import random
from tests.distillers.small import SPEC, make_batch

LABEL = torch.tensor([0, 3, 1, 1, 2, 0])
WIDTHS = {"teacher": 7, "second": 3, "third": 4}


def head(features: int) -> nn.Linear:
    torch.manual_seed(features)
    return nn.Linear(features, 4).double().requires_grad_(False)


def teachers(sign: bool = False) -> tuple[dict[str, Outputs], dict[str, nn.Linear]]:
    """Three that end in a linear layer on their averaged map [6, C, 3, 3]."""
    heads = {name: head(width) for name, width in WIDTHS.items()}
    answers = {}
    for seed, (name, width) in enumerate(WIDTHS.items()):
        x = random(seed + 1, (6, width, 3, 3)).features["a"]
        x = x if sign else x.abs()
        answers[name] = Outputs(heads[name](x.mean((2, 3))), {"a": x})
    return answers, heads


def made(student: Outputs, sign: bool = False) -> tuple[ConfidentHints, dict[str, Outputs]]:
    loss = ConfidentHints(("a",))
    answers, heads = teachers(sign)
    sides = {name: Side(answers[name], heads[name]) for name in answers}
    loss.read_taps = {"second": ("a",), "third": ("a",)}
    loss.prepare_reads({name: sides[name] for name in ("second", "third")})
    loss.prepare(Side(student), sides["teacher"])
    return loss.double().train(), answers


def value(loss: ConfidentHints, student: Outputs, answers: dict[str, Outputs]) -> Tensor:
    others = {name: answers[name] for name in ("second", "third")}
    found: Tensor = loss(student, answers["teacher"], Batch(student.logits, LABEL), **others)
    return found


def test_by_hand_with_weights_that_are_constants() -> None:
    student = random(0, (6, 5, 6, 6))
    feature = student.features["a"].requires_grad_()
    loss, answers = made(student)
    wrong, gaps = [], []
    for name, width in WIDTHS.items():
        kernel = loss.connectors[name][0].weight[:, :, 0, 0]  # type: ignore[index]
        x = torch.einsum("oc,bchw->bohw", kernel, feature)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = ((x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()).clamp_min(0)
        said = head(width)(x.mean((2, 3)))
        wrong.append(torch.stack([-said[b].log_softmax(0)[LABEL[b]] for b in range(6)]))
        small = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        gaps.append((small - answers[name].features["a"]).square().mean((1, 2, 3)))
    weights = (1 - torch.stack(wrong, 1).detach().softmax(1)) / 2
    assert weights.std() > 0.01  # or the test would not see them
    expected = (weights * torch.stack(gaps, 1)).sum(1).mean()
    found = value(loss, student, answers)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(x, feature, retain_graph=True) for x in (found, expected))
    torch.testing.assert_close(*gradients)


def test_only_a_map_that_is_never_negative_is_rectified() -> None:
    student = random(0, (6, 5, 3, 3))
    for sign, kind in ((True, nn.Identity), (False, nn.ReLU)):
        loss, _ = made(student, sign)
        assert all(isinstance(c[2], kind) for c in loss.connectors.values())  # type: ignore[index]


def test_one_teacher_is_refused() -> None:
    loss = ConfidentHints(("a",))
    with pytest.raises(ValueError, match="name the others under reads"):
        loss.prepare_reads({})


def test_a_teacher_whose_head_reads_something_else_is_named() -> None:
    student = random(0, (6, 5, 3, 3))
    answers, heads = teachers()
    loss = ConfidentHints(("a",))
    loss.read_taps = {"second": ("a",)}
    loss.prepare_reads({"second": Side(answers["second"], head(9))})
    with pytest.raises(ValueError, match="the second's tap"):
        loss.prepare(Side(student), Side(answers["teacher"], heads["teacher"]))


def test_in_a_distiller_each_teacher_is_read_at_its_own_stage() -> None:
    def network(width: int) -> Classifier:
        torch.manual_seed(width)
        return Classifier(DigitsCNN(1, 4, width), SPEC)

    class Deeper(DigitsCNN):
        """Its last stage has another name."""

        def __init__(self) -> None:
            super().__init__(1, 4, 6)
            self.taps = {"stage1": "stage1", "stage7": "stage2", "logits": "linear"}

    torch.manual_seed(0)
    guides = {"second": network(5), "third": Classifier(Deeper(), SPEC)}
    objective = Objective({"hints": Weighted(ConfidentHints())})
    edges = {"hints": Edge(reads={name: Ref(name) for name in guides})}
    student, teacher = DigitsCNN(1, 4, 4), network(8)
    modules = {name: guide.module for name, guide in guides.items()}
    resolve_taps(objective, student, teacher, edges, modules)
    taps = taps_of(objective, edges)
    assert {name: taps[name] for name in guides} == {"second": ("stage2",), "third": ("stage7",)}
    seen = Classifier(student, SPEC, taps=taps["student"])
    distiller = Distiller(seen, objective, teacher, Runtime("cpu"), edges=edges, teachers=guides)
    assert distiller.needs_label
    losses = distiller(make_batch(LABEL))
    losses.total.backward()
    assert all(p.grad is not None for p in distiller.objective.parameters())
