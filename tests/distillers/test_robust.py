"""Losses on attacked inputs, against their formulas, and which answers their gradients reach."""

import pytest
import torch
from torch import Tensor

from data.spec import Batch
from distillers.attacks import PGD
from distillers.edges import graded
from distillers.robust import IAD, TRADES
from distillers.step import Edge, Ref, Step
from models.classifier import Outputs
from tests.distillers.small import SPEC, make, make_batch, make_teacher, objective_of

LABEL = torch.tensor([0, 3, 1, 2, 2, 0])


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def divergence(p: Tensor, q: Tensor) -> float:
    """Of two distributions over classes, one class after the other."""
    return sum((a * (a.log() - b.log())).item() for a, b in zip(p, q, strict=True))


def test_trades() -> None:
    moved, clean = logits(0), logits(1)
    batch = Batch(torch.zeros(6, 1))
    value = TRADES()(Outputs(moved), None, batch, clean=Outputs(clean))
    p, q = clean.softmax(1), moved.softmax(1)
    assert value.item() == pytest.approx(sum(map(divergence, p, q)) / 6, rel=1e-9)
    value.backward()
    for x in (moved, clean):  # neither is a target
        assert x.grad is not None
        assert x.grad.abs().min() > 1e-9
    found = moved.grad
    torch.testing.assert_close(found, ((q - p) / 6).detach())  # of a cross-entropy with p


def test_iad() -> None:
    moved, clean, teacher = logits(0), logits(1), logits(2)
    batch = Batch(torch.zeros(6, 1), LABEL)
    value = IAD(0.1)(Outputs(moved), Outputs(teacher.detach()), batch, clean=Outputs(clean))
    p, q, t = clean.softmax(1), moved.softmax(1), teacher.softmax(1)
    expected = sum((1 - t[i, LABEL[i]].item() ** 0.1) * divergence(p[i], q[i]) for i in range(6))
    assert value.item() == pytest.approx(expected / 6, rel=1e-9)
    value.backward()
    assert moved.grad is not None
    assert clean.grad is not None
    assert clean.grad.abs().min() > 1e-9


def test_iad_trusts_a_teacher_that_is_sure_and_right() -> None:
    """And with it, nothing of the student's own answer; also where a probability is 0."""
    sure = 200 * torch.nn.functional.one_hot(LABEL, 4).float()
    moved, clean = (Outputs(logits(seed).float()) for seed in (0, 1))
    batch = Batch(torch.zeros(6, 1), LABEL)
    assert IAD()(moved, Outputs(sure), batch, clean=clean) == 0
    wrong = IAD()(moved, Outputs(-sure), batch, clean=clean)
    torch.testing.assert_close(wrong, TRADES()(moved, None, batch, clean=clean), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="beta must be at least 0"):
        IAD(-0.1)


@pytest.mark.parametrize("name", ["trades", "iad"])
def test_both_answers_of_the_student_learn(name: str) -> None:
    loss = {"trades": TRADES(), "iad": IAD()}[name]
    edge = Edge(Ref("student", "attacked"), Ref("teacher", "attacked"), {"clean": Ref("student")})
    objective = objective_of(loss=loss)
    assert graded(objective, {"loss": edge}, {}, {}) == {Ref("student"), Ref("student", "attacked")}
    view = PGD(SPEC, 0.1, iterations=2, mode="train")
    teacher = make_teacher() if loss.needs_teacher else None
    distiller = make(objective, teacher, edges={"loss": edge}, attacked=view)
    batch = make_batch(LABEL)
    distiller(batch).total.backward()
    found = [p.grad.clone() for p in distiller.student.parameters() if p.grad is not None]
    moved = Step(distiller.roles, batch).view("attacked")  # of step 0, as before
    known = Outputs(teacher.eval()(moved).logits.detach()) if teacher else None
    answers = distiller.student(moved), known, batch, distiller.student(batch.input)
    wanted = torch.autograd.grad(loss(*answers), list(distiller.student.parameters()))
    assert max(float(g.abs().max()) for g in found) > 1e-4
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
