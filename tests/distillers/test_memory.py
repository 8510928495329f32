"""A memory teaches what was predicted an epoch ago, and PS-KD's loss follows its paper."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.builtin import digits
from data.dataset import DataFreeError, Dataset
from data.spec import Batch
from distillers.distiller import Distiller
from distillers.memory import Memory
from distillers.response import KD, CrossEntropy, SoftTargetCE
from distillers.step import Edge, Ref, Roles, Step, Teacher
from engine.config import compose, plain
from engine.parts import Parts, build_dataset, build_parts
from models.classifier import Classifier, Outputs
from tests.distillers.small import SPEC, Network
from tests.waits import Waits

LABEL = torch.tensor([3, 0, 2])
INDEX = torch.tensor([7, 1400, 0])


def dataset() -> Dataset:
    data: Dataset = digits(Runtime("cpu"))
    return data


def draw(seed: int = 0) -> Tensor:
    return 3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


class Says(Teacher):
    """Answers what it is told to."""

    logits: Tensor

    def forward(self, step: Step, view: str) -> Outputs:
        return Outputs(self.logits)


def make_step(logits: Tensor, index: Tensor | None = INDEX) -> Step:
    says = Says()
    says.logits = logits
    roles = Roles({}, {}, {"net": says}, {}, Runtime("cpu"))
    return Step(roles, Batch(torch.zeros(len(logits), 1), LABEL[: len(logits)], index))


def make(runtime: Runtime | None = None) -> Memory:
    return Memory(dataset(), 4, runtime or Runtime("cpu"), "net")


def probabilities(memory: Memory, step: Step) -> Tensor:
    return F.softmax(memory(step, "input").logits, dim=1)


def test_inputs_not_seen_have_their_label() -> None:
    memory, step = make(), make_step(draw())
    assert memory.table.shape == (1437, 4)
    assert memory.needs_label
    assert memory.needs_index
    torch.testing.assert_close(probabilities(memory, step), F.one_hot(LABEL, 4).float())
    answer = memory(step, "input")
    assert KD(4.0)(Outputs(draw(1)), answer, step.batch).isfinite()
    found = KD(1.0)(Outputs(draw(1)), answer, step.batch)  # KL to a one-hot vector
    torch.testing.assert_close(found, F.cross_entropy(draw(1), LABEL))


def test_inputs_seen_have_their_latest_prediction() -> None:
    memory = make()
    first = make_step(draw().requires_grad_())
    memory.record(first)
    assert not memory.table.requires_grad
    torch.testing.assert_close(probabilities(memory, first), F.softmax(draw(), dim=1))
    memory.record(make_step(draw(1)[:2], INDEX[[2, 1]]))
    expected = F.softmax(torch.stack([draw()[0], draw(1)[1], draw(1)[0]]), dim=1)
    torch.testing.assert_close(probabilities(memory, first), expected)
    assert (memory.table.sum(dim=1) > 0).sum() == 3  # nobody else has gained one


def test_certain_predictions_stay_finite_and_seen() -> None:
    memory, step = make(), make_step(1e5 * draw())
    memory.record(step)
    answer = memory(step, "input")
    assert answer.logits.isfinite().all()
    expected = F.one_hot(draw().argmax(dim=1), 4).float()
    torch.testing.assert_close(F.softmax(answer.logits, dim=1), expected)
    assert not torch.equal(draw().argmax(dim=1), LABEL)


def test_a_step_reads_what_was_before_it() -> None:
    """Through the distiller: an epoch of labels alone, then one that learns from it."""
    torch.manual_seed(0)
    student = Classifier(Network(4), SPEC)
    loss = SoftTargetCE(alpha=1.0)
    distiller = Distiller(
        student,
        Objective({"soft": Weighted(loss)}),
        None,
        Runtime("cpu"),
        edges={"soft": Edge(teacher=Ref("past"))},
        teachers={"past": Memory(dataset(), 4, Runtime("cpu"))},
    )
    distiller.at(1.0)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, LABEL, INDEX)
    s = student.train()(x).logits.detach()
    torch.testing.assert_close(distiller(batch).total, F.cross_entropy(s, LABEL))
    with torch.no_grad():
        student.module.head[1].weight.mul_(-2)  # type: ignore[union-attr, index, operator]
    now = student(x).logits
    expected = F.cross_entropy(now, F.softmax(s, dim=1))
    torch.testing.assert_close(distiller(batch).total, expected)
    assert not torch.allclose(expected, F.cross_entropy(now, F.softmax(now, dim=1)))
    held = distiller.state_dict()["teachers.past.table"]
    torch.testing.assert_close(held[INDEX], F.softmax(now, dim=1).detach())


def test_the_loss_is_the_papers() -> None:
    past, loss = draw(1), SoftTargetCE(alpha=0.8)
    batch = Batch(torch.zeros(3, 1), LABEL)
    for progress in (0.0, 0.25, 1.0):
        loss.at(progress)
        s = draw().requires_grad_()
        share = 0.8 * progress
        target = (1 - share) * F.one_hot(LABEL, 4) + share * F.softmax(past, dim=1)
        found = loss(Outputs(s), Outputs(past), batch)
        torch.testing.assert_close(found, -(target * s.log_softmax(dim=1)).sum(dim=1).mean())
        found.backward()
        torch.testing.assert_close(s.grad, (F.softmax(s, dim=1) - target).detach() / 3)
    fresh = SoftTargetCE()(Outputs(draw()), Outputs(past), batch)
    torch.testing.assert_close(fresh, CrossEntropy()(Outputs(draw()), None, batch))


def test_mistakes_are_named() -> None:
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match="alpha"):
            SoftTargetCE(alpha)
    for use in (make().record, lambda step: make()(step, "input")):
        with pytest.raises(ValueError, match="does not give"):
            use(make_step(draw(), index=None))
    with pytest.raises(ValueError, match="would take"):
        Memory(dataset(), 2**40, Runtime("cpu"))
    data = dataset()
    data.close_training()
    with pytest.raises(DataFreeError, match="data-free"):
        Memory(data, 4, Runtime("cpu"))


def build_pskd() -> Parts:
    small = ["student.model.width=4", "batch_size=479", "device=cpu"]  # three batches an epoch
    config = plain(compose(["method=pskd", *small]))
    runtime = Runtime("cpu")
    return build_parts(config, build_dataset(config, runtime), None, runtime)


def test_an_epoch_of_the_method_fills_the_table_and_no_step_waits() -> None:
    parts = build_pskd()
    table = parts.distiller.roles.teachers["past"].table
    for count in (1, 2, 3):
        parts.distiller(parts.source.next()).total.backward()
        assert (table.sum(dim=1) > 0).sum() == 479 * count  # type: ignore[operator, union-attr]
    batch = parts.source.next()
    parts.distiller.at(0.5)
    with Waits() as waits:
        parts.distiller(batch).total.backward()
    assert not waits.found
    other = build_pskd()
    other.distiller.load_state_dict(copy.deepcopy(parts.distiller.state_dict()))
    other.distiller.at(0.6)
    parts.distiller.at(0.6)
    batch = parts.source.next()
    assert torch.equal(parts.distiller(batch).total, other.distiller(batch).total)


def misremembered(rank: int) -> list[str]:
    """What is wrong with the memory of one of two ranks; tests/test_losses_in_two_processes.py."""
    expected, runtime = make(), Runtime("cpu")
    for seed in (0, 1):
        expected.record(make_step(draw(seed), INDEX + seed))
    runtime.rank, runtime.world_size = rank, 2
    memory = make(runtime)
    memory.record(make_step(draw(rank), INDEX + rank))
    same = torch.equal(memory.table, expected.table)
    return [] if same else ["a memory does not hold what both ranks saw"]
