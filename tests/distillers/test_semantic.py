"""Attention over layers: SemCKD and AFD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillers.base import TransferLoss
from distillers.semantic import AFD, SemCKD
from models.classifier import Outputs
from tests.distillers.features import apply, outputs, prepared, random

OURS = ((4, 3, 8, 8), (4, 5, 4, 4))
THEIRS = ((4, 6, 8, 8), (4, 7, 4, 4), (4, 2, 2, 2))
# two student layers and three of the teacher's: the student's second is named twice
ALL = [{"student": s, "teacher": t} for s, t in (("a", "a"), ("b", "b"), ("b", "c"))]


def both() -> tuple[Outputs, Outputs]:
    return random(0, *OURS), random(1, *THEIRS)


def maps(x: Outputs) -> list[Tensor]:
    return list(x.features.values())


def softmax(values: list[float]) -> list[float]:
    exponents = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponents) for e in exponents]


@torch.no_grad()
def test_semckd_by_hand() -> None:
    student, teacher = both()
    loss = prepared(SemCKD(4, ALL, dim=3), student, teacher)
    assert (len(loss.queries), len(loss.keys)) == (2, 3)

    def embedded(embedding: Any, x: Tensor) -> list[Tensor]:
        first, _, last = embedding
        found = []
        for i in range(4):
            similar = torch.stack([(x[i] * x[j]).sum() for j in range(4)])
            hidden = (first.weight @ similar + first.bias).relu()
            vector = last.weight @ hidden + last.bias
            found.append(vector / vector.norm())
        return found

    queries = [embedded(m, x) for m, x in zip(loss.queries, maps(student), strict=True)]
    keys = [embedded(m, x) for m, x in zip(loss.keys, maps(teacher), strict=True)]
    rows: Any = loss.projections
    total = 0.0
    for i, s in enumerate(maps(student)):
        distances = []
        for j, t in enumerate(maps(teacher)):
            size = (min(s.shape[2], t.shape[2]),) * 2
            small, target = (F.adaptive_avg_pool2d(x, size) for x in (s, t))
            distances.append((rows[i][j](small) - target).square().mean((1, 2, 3)))
        for b in range(4):
            weights = softmax([float(queries[i][b] @ key[b]) for key in keys])
            total += sum(w * float(d[b]) for w, d in zip(weights, distances, strict=True))
    assert apply(loss, student, teacher).item() == pytest.approx(total / (4 * 2))


def test_semckd_of_one_teacher_layer_has_nothing_to_choose() -> None:
    student, teacher = random(0, OURS[0]), random(1, THEIRS[0])
    loss = prepared(SemCKD(4, ["a"]), student, teacher)
    rows: Any = loss.projections
    expected = F.mse_loss(rows[0][0](student.features["a"]), teacher.features["a"])
    torch.testing.assert_close(apply(loss, student, teacher), expected)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_semckd_takes_batches_of_any_size(size: int) -> None:
    """Fewer inputs than it was told of are compared with zeros, more with the first ones."""
    student, teacher = both()
    loss = prepared(SemCKD(3, ALL), student, teacher)
    x, y = (outputs(*(f[:size] for f in maps(z))) for z in (student, teacher))
    assert apply(loss, x, y).isfinite()
    embedding = nn.Linear(3, 3, bias=False).double()
    nn.init.eye_(embedding.weight)
    gram = x.features["a"].flatten(1) @ x.features["a"].flatten(1).T
    expected = torch.zeros(size, 3, dtype=torch.float64)
    expected[:, : min(3, size)] = gram[:, :3]
    torch.testing.assert_close(
        loss._embed(embedding, x.features["a"]), F.normalize(expected, dim=1)
    )


@torch.no_grad()
def test_afd_by_hand() -> None:
    student, teacher = both()
    loss = prepared(AFD(ALL, dim=4), student, teacher)

    def normalized(x: Tensor, norm: Any) -> Tensor:
        y = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        return y if norm.weight is None else y * norm.weight + norm.bias

    def energy(x: Tensor, side: int) -> Tensor:
        e = F.adaptive_avg_pool2d(x.square().sum(0)[None], side).flatten()
        return e / e.norm()

    for norm in (m for m in loss.modules() if isinstance(m, nn.BatchNorm1d) and m.affine):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    queries = [
        normalized(x.mean((2, 3)) @ m[0].weight.T, m[1])
        for m, x in zip(loss.queries, maps(teacher), strict=True)
    ]
    keys = [
        normalized(x.mean((2, 3)) @ m[0].weight.T, m[1]).relu()
        for m, x in zip(loss.keys, maps(student), strict=True)
    ]
    rows = torch.stack([keys[s][b] for b in range(4) for s in range(2)])
    weighted = normalized(rows @ loss.bilinear[0].weight.T, loss.bilinear[1])
    total = 0.0
    for b in range(4):
        for t, y in enumerate(maps(teacher)):
            logits, distances = [], []
            for s, x in enumerate(maps(student)):
                key = weighted[2 * b + s, 4 * t : 4 * t + 4]
                position = loss.teacher_positions[t] @ loss.student_positions[s]
                logits.append(float(queries[t][b] @ key + position) / 2)
                gap = energy(x[b], y.shape[2]) - energy(y[b], y.shape[2])
                distances.append(float(gap.square().mean()))
            total += sum(a * d for a, d in zip(softmax(logits), distances, strict=True)) / 4
    assert apply(loss, student, teacher).item() == pytest.approx(total)


def test_afd_chooses_the_layer_that_is_alike() -> None:
    """Of two student layers, one is the teacher's own: attention learns to look there."""
    teacher = random(1, (16, 6, 4, 4))
    student = outputs(random(0, (16, 5, 4, 4)).features["a"], 2 * teacher.features["a"])
    taps = [{"student": s, "teacher": "a"} for s in ("a", "b")]
    loss = prepared(AFD(taps, dim=8), student, teacher)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    first = apply(loss, student, teacher).item()
    for _ in range(50):
        optimizer.zero_grad()
        apply(loss, student, teacher).backward()
        optimizer.step()
    attention = loss._attention(maps(student), maps(teacher))
    torch.testing.assert_close(attention.sum(2), torch.ones_like(attention[..., 0]))
    assert attention[..., 1].min() > 0.9
    assert apply(loss, student, teacher) < 0.2 * first


def test_afd_ignores_scale_and_the_order_of_channels_in_what_it_compares() -> None:
    student, teacher = random(0, OURS[0]), random(1, THEIRS[0])
    loss = prepared(AFD(["a"]), student, teacher)  # one layer on each side: all attention is 1
    value = apply(loss, student, teacher)
    other = outputs(-3 * student.features["a"].flip(1))
    torch.testing.assert_close(apply(loss, other, teacher), value)


@pytest.mark.parametrize("make", [lambda: SemCKD(0), lambda: SemCKD(8, dim=0), lambda: AFD(dim=0)])
def test_sizes_are_at_least_1(make: Any) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        make()


@pytest.mark.parametrize("loss", [SemCKD(4, []), AFD([])])
def test_without_taps_they_ask_for_some(loss: TransferLoss) -> None:
    with pytest.raises(ValueError, match=r"reads features: name some in its taps"):
        prepared(loss, *both())


@pytest.mark.parametrize("loss", [SemCKD(4, ALL), AFD(ALL)])
def test_a_layer_named_twice_counts_once(loss: TransferLoss) -> None:
    student, teacher = both()
    prepared(loss, student, teacher)
    queries: Any = loss.queries
    keys: Any = loss.keys
    assert sorted((len(queries), len(keys))) == [2, 3]
