"""Contrastive distillation: its loss, its memories, and runs with and without data."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime import Runtime
from data.builtin import digits
from data.dataset import Dataset
from data.spec import Batch
from distillers.base import Side
from distillers.crd import CRD, Contrast, Memory, lasting_rows, measure_log_mean, nce
from models.classifier import Outputs

K, ROWS, WIDTH = 4, 9, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dataset() -> Dataset:
    data: Dataset = digits(Runtime("cpu"))
    return data


def closed() -> Dataset:
    data = dataset()
    data.close_training()
    return data


def batch(label: Tensor, index: Tensor | None = None) -> Batch:
    x = torch.zeros(len(label), 1)
    return Batch(x, label, index)


def sides(count: int, seed: int = 0) -> tuple[Outputs, Outputs]:
    """Of a student with embeddings of width 5 and a teacher with 7."""
    both = draw(count, 5, seed=seed), draw(count, 7, seed=seed + 1)
    student, teacher = (Outputs(x, {"pooled": x}) for x in both)
    student.features["pooled"].requires_grad_()
    return student, teacher


def make(data: Dataset, **options: Any) -> CRD:
    torch.manual_seed(0)
    loss = CRD(data, **{"negatives": K, "width": WIDTH, **options})
    loss.prepare(*(Side(x) for x in sides(2)))
    return loss.double()


def by_gathering(
    anchors: Tensor, memory: Tensor, positive: Tensor, drawn: Tensor, tau: float, z: float | None
) -> tuple[Tensor, float]:
    """The authors' loss, with n entries, of anchors [B, D] and drawn negatives [B, K]; and Z."""
    n, k = len(memory), drawn.shape[1]
    chosen = torch.cat([positive[:, None], memory[drawn]], dim=1)
    scores = torch.exp(torch.einsum("bd,bkd->bk", anchors, chosen) / tau)
    if z is None:
        z = scores.mean().item() * n
    p = scores / z
    log_d1 = torch.log(p[:, 0] / (p[:, 0] + k / n))
    log_d0 = torch.log((k / n) / (p[:, 1:] + k / n))
    return -(log_d1.sum() + log_d0.sum()) / len(anchors), z


@pytest.mark.parametrize("first", [True, False])
def test_the_loss_is_that_of_the_authors_with_the_same_negatives(first: bool) -> None:
    """Each input has K negatives that are allowed, and draws each of them."""
    z, memory = (
        F.normalize(draw(2, 3, WIDTH), dim=2),
        F.normalize(draw(2, ROWS, WIDTH, seed=1), dim=2),
    )
    z.requires_grad_()
    drawn = torch.tensor([[0, 2, 5, 8], [1, 2, 3, 4], [8, 6, 3, 1]])
    allowed = torch.zeros(3, ROWS, dtype=torch.bool).scatter_(1, drawn, True)
    positive = memory[:, :3]
    known = None if first else 17.0
    pairs = [by_gathering(z[i], memory[i], positive[i], drawn, 0.3, known) for i in range(2)]
    near, far = (z * positive).sum(2) / 0.3, z @ memory.transpose(1, 2) / 0.3
    scale = torch.tensor([math.log(norm / ROWS) for _, norm in pairs], dtype=torch.float64)
    if first:
        torch.testing.assert_close(measure_log_mean(near, far, allowed, K).detach(), scale)
    found = nce(near, far, allowed, scale, K)
    for i, (expected, _) in enumerate(pairs):
        torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(sum(loss for loss, _ in pairs), z, retain_graph=True)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.autograd.grad(found.sum(), z)[0], expected)


def test_the_loss_is_the_mean_over_what_could_be_drawn() -> None:
    z, memory = (
        F.normalize(draw(2, 3, WIDTH), dim=2),
        F.normalize(draw(2, ROWS, WIDTH, seed=1), dim=2),
    )
    allowed = torch.arange(ROWS) >= torch.tensor([[3], [4], [5]])
    near, far = (z * memory[:, :3]).sum(2) / 0.3, z @ memory.transpose(1, 2) / 0.3
    scale = torch.tensor([0.2, 0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(3000):
        drawn = torch.multinomial(allowed.double(), K, replacement=True, generator=generator)
        loss = [
            by_gathering(z[i], memory[i], memory[i, :3], drawn, 0.3, scale[i].exp().item() * ROWS)[
                0
            ]
            for i in range(2)
        ]
        losses.append(torch.stack(loss))
    mean, error = torch.stack(losses).mean(0), torch.stack(losses).std(0) / math.sqrt(3000)
    assert ((nce(near, far, allowed, scale, K) - mean).abs() < 4 * error).all()


def test_a_bank_follows_an_inputs_embeddings() -> None:
    memory = Memory(ROWS, WIDTH, momentum=0.5, queue=False).double()
    before = memory.embeddings.clone()
    z, index = F.normalize(draw(2, 3, WIDTH), dim=2), torch.tensor([7, 0, 4])
    returned = memory.exchange(z, torch.tensor([1, 2, 3]), index)
    assert torch.equal(returned, before[:, index])
    for side in range(2):
        for i, row in enumerate([7, 0, 4]):
            mixed = 0.5 * before[side, row] + 0.5 * z[side, i]
            torch.testing.assert_close(memory.embeddings[side, row], mixed / mixed.norm())
    rest = [1, 2, 3, 5, 6, 8]
    assert torch.equal(memory.embeddings[:, rest], before[:, rest])
    assert memory.labels.tolist() == [2, -1, -1, -1, 3, -1, -1, 1, -1]
    assert memory.entries()[0].shape == (2, ROWS, WIDTH)
    torch.testing.assert_close(before.norm(dim=2).mean().item(), 1.0, rtol=0.1, atol=0)


def test_rows_that_never_come_are_no_negatives_once_all_others_have() -> None:
    """Such as those without a label: their random embeddings would be negatives for good."""
    torch.manual_seed(0)
    contrast = Contrast([nn.Identity(), nn.Identity()], Memory(6, WIDTH, 0.5, False), 0.3, K)
    contrast = contrast.double()
    s, t = draw(2, 3, WIDTH)
    batch = Batch(s, torch.tensor([0, 1, 2]), torch.tensor([4, 0, 2]))

    def moved() -> bool:
        """Whether the loss depends on the other rows."""
        losses = []
        for seed in (1, 2):
            other = copy.deepcopy(contrast)
            with torch.no_grad():
                other.memory.embeddings[:, [1, 3, 5]] = draw(2, 3, WIDTH, seed=seed)
            losses.append(other(s, t, batch))
        return not torch.equal(*losses)

    assert moved()
    contrast(s, t, batch)
    assert not moved()  # the next one makes it as many inputs as there are rows


def test_a_queue_keeps_the_latest() -> None:
    memory = Memory(5, WIDTH, momentum=0.5, queue=True).double()
    come: list[Tensor] = []
    for step, count in enumerate([2, 2, 2, 12, 1]):
        z = F.normalize(draw(2, count, WIDTH, seed=step), dim=2)
        come += z.unbind(1)
        start = len(come) - count
        assert torch.equal(memory.exchange(z, torch.arange(start, len(come)), None), z)
        entries, labels = memory.entries()
        latest = range(max(0, len(come) - 5), len(come))
        assert sorted(labels.tolist()) == list(latest)
        for slot, label in enumerate(labels.tolist()):
            assert torch.equal(entries[:, slot], come[label])


def test_each_network_is_held_against_the_other() -> None:
    """Two steps of the whole loss, redone by hand with its heads."""
    loss = make(dataset())
    one: Any = loss.contrasts[0]
    memory = one.memory.embeddings.clone()  # the teacher's, the student's
    labels, scale = one.memory.labels.clone(), None
    for step in range(2):
        student, teacher = sides(3, seed=step)
        index, label = torch.tensor([3, 1, 5]) + step, torch.tensor([0, 1, 0])
        value = loss(student, teacher, batch(label, index))
        z = torch.stack(
            [
                F.normalize(head(x.features["pooled"]), dim=1).detach()
                for head, x in zip(one.heads, (student, teacher), strict=True)
            ]
        )
        positive = memory[:, index]
        memory[:, index] = F.normalize(0.5 * positive + 0.5 * z.flip(0), dim=2)
        labels[index] = label
        near = (z * positive).sum(2) / 0.07
        far = torch.einsum("nbd,nmd->nbm", z, memory) / 0.07
        allowed = labels[None] != label[:, None]
        assert not allowed[torch.arange(3), index].any()
        if scale is None:
            scale = measure_log_mean(near, far, allowed, K)
        torch.testing.assert_close(value, nce(near, far, allowed, scale, K).sum())
    torch.testing.assert_close(one.log_mean, scale)


@pytest.mark.parametrize("data", [dataset, closed])
def test_learns_and_keeps_its_state(data: Any) -> None:
    def step(loss: CRD, seed: int) -> Tensor:
        student, teacher = sides(4, seed)
        label = torch.tensor([0, 1, 2, 0])
        value: Tensor = loss(student, teacher, batch(label, torch.arange(4) + seed))
        value.backward()
        assert value.isfinite()
        for x in (student.features["pooled"], *loss.parameters()):
            assert x.grad is not None
            assert x.grad.isfinite().all()
            assert x.grad.any()
        return value.detach()

    first = make(data())
    for seed in range(3):
        step(first, seed)
    second = make(data())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 6):
        assert torch.equal(step(first, seed), step(second, seed))


def test_a_run_with_data_has_an_entry_for_each_input() -> None:
    memory: Any = make(dataset()).contrasts[0].memory
    assert len(memory.labels) == 1437
    assert not memory.queue
    assert sum(p.numel() for p in make(dataset()).parameters()) == (5 + 1 + 7 + 1) * WIDTH


@pytest.mark.parametrize(("data", "capacity"), [(dataset, 1436), (dataset, 0), (closed, 10**6)])
def test_memory_is_bounded(data: Any, capacity: int) -> None:
    assert lasting_rows(data(), capacity) == 0
    memory: Any = make(data(), capacity=capacity).contrasts[0].memory
    assert memory.queue
    assert len(memory.labels) == K


def test_synthesized_inputs_need_no_index_and_reading_is_not_counted() -> None:
    data = closed()
    student, teacher = sides(3)
    assert make(data)(student, teacher, batch(torch.tensor([0, 1, 0]))).isfinite()
    assert data.real_training_inputs_read == 0
    with pytest.raises(ValueError, match=r"batch\.index"):
        make(dataset())(student, teacher, batch(torch.tensor([0, 1, 0])))


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("data", [dataset, closed])
def test_stays_finite_with_one_class_and_large_features(count: int, data: Any) -> None:
    loss = make(data()).float()
    for scale in (500.0, 0.0):
        student, teacher = (
            Outputs(x.logits, {"pooled": (scale * x.features["pooled"].detach()).float()})
            for x in sides(count)
        )
        student.features["pooled"].requires_grad_()
        label, index = torch.zeros(count, dtype=torch.long), torch.arange(count)
        for _ in range(2):
            value = loss(student, teacher, batch(label, index))
            value.backward()
            assert value.isfinite()
        assert student.features["pooled"].grad is not None
        assert student.features["pooled"].grad.isfinite().all()


def test_maps_and_tokens_are_averaged() -> None:
    torch.manual_seed(0)
    student, teacher = draw(3, 4, 2, 2), draw(3, 5, 6, seed=1)
    pair = [Outputs(x.flatten(1), {"pooled": x}) for x in (student, teacher)]
    loss = CRD(closed(), negatives=K, width=WIDTH)
    loss.prepare(*(Side(x) for x in pair))
    shapes = [tuple(p.shape) for p in loss.parameters()]
    assert shapes == [(WIDTH, 4), (WIDTH,), (WIDTH, 6), (WIDTH,)]
    assert loss.double()(*pair, batch(torch.arange(3))).isfinite()


def test_agreeing_networks_have_the_smaller_loss() -> None:
    """With τ small, embeddings of one input alike and of others apart leave nothing to learn."""
    memory = Memory(8, 8, 0.5, queue=True)
    heads = (torch.nn.Identity(), torch.nn.Identity())
    contrast, eye, label = Contrast(heads, memory, 0.05, 8), torch.eye(8), torch.arange(8)
    same = contrast(eye, eye, batch(label))
    other = contrast(eye, eye.roll(1, 0), batch(label))
    assert same < other - 10


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"negatives": 0}, {"momentum": 1.0}, {"width": 0}]
)
def test_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="CRD needs temperature"):
        make(closed(), **wrong)
