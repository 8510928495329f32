"""Losses on relations, in the batch and between channels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillers import relation
from distillers.base import TransferLoss
from distillers.instance_graph import IRG
from distillers.relation import (
    ICKD,
    PKT,
    RKD,
    CorrelationCongruence,
    SimilarityPreserving,
    squared_distances,
)
from models.classifier import Outputs
from tests.distillers.features import apply, leaves, outputs, prepared, random

TERMS: dict[str, Callable[[], TransferLoss]] = {
    "sp": lambda: SimilarityPreserving(["a", "b"]),
    "pkt": lambda: PKT(["a", "b"]),
    "rkd": lambda: RKD(["a", "b"]),
    "cc": lambda: CorrelationCongruence(["a", "b"]),
    "irg": lambda: IRG(["a", "b"]),
    "ickd": lambda: ICKD(["a", "b"]),
}
OF_ANY_WIDTH = ("sp", "pkt", "rkd", "irg")
MAPS = ((4, 6, 8, 8), (4, 5, 4, 4))
LARGER = ((4, 3, 16, 16), (4, 9, 8, 8))
TOKENS = ((4, 17, 7), (4, 17, 7))
SHAPES = {
    "alike": (MAPS, MAPS),
    "larger teacher": (MAPS, LARGER),
    "smaller teacher": (LARGER, MAPS),
    "cnn to vit": (MAPS, TOKENS),
    "vit to cnn": (TOKENS, LARGER),
}


def run(loss: TransferLoss, student: Outputs, teacher: Outputs) -> Tensor:
    """With logits of one width, which IRG reads."""
    both = (
        Outputs(next(iter(x.features.values())).flatten(1)[:, :3], x.features)
        for x in (student, teacher)
    )
    return apply(loss, *both)


@pytest.fixture(params=TERMS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


FIXTURES: dict[str, tuple[TransferLoss, str, str]] = {
    "similarity_preserving": (
        SimilarityPreserving(["a"]),
        "features_student_2",
        "features_teacher_2",
    ),
    "pkt": (PKT(["a"]), "embedding_student", "embedding_teacher"),
    "rkd_distance25_angle50": (RKD(["a"]), "embedding_student", "embedding_teacher"),
    "correlation_congruence": (
        CorrelationCongruence(["a"]),
        "embedding_student",
        "embedding_teacher_same",
    ),
}


@pytest.mark.parametrize("reference", FIXTURES)
@pytest.mark.parametrize("pieces", [1, 6])
def test_equals_the_reference(
    reference: str, pieces: int, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relation, "ANGLES", 16 * 48 * 16 // pieces)
    data = np.load(shared / "fixtures" / "transfer_losses.npz")
    loss, ours, theirs = FIXTURES[reference]
    student = torch.from_numpy(data[ours]).double().requires_grad_()
    value = apply(loss, outputs(student), outputs(torch.from_numpy(data[theirs]).double()))
    assert value.item() == pytest.approx(float(data[f"value/{reference}"]), rel=1e-9)
    value.backward()
    expected = torch.from_numpy(data[f"grad/{reference}/{ours}"]).double()
    # The reference was rounded to float32, which is exact to 2^-24 of each entry.
    torch.testing.assert_close(student.grad, expected, rtol=6.1e-8, atol=1e-15)


@pytest.mark.parametrize("shapes", SHAPES)
def test_learns_from_features_of_any_two_shapes(name: str, shapes: str) -> None:
    ours, theirs = SHAPES[shapes]
    student, teacher = random(0, *ours), random(1, *theirs)
    loss = prepared(TERMS[name](), student, teacher)
    value = run(loss, student := outputs(*leaves(student)), teacher)
    value.backward()
    assert value.isfinite()
    for tensor in (*student.features.values(), *loss.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.any()
        assert tensor.grad.isfinite().all()


def test_its_state_is_all_that_it_learned(name: str) -> None:
    student, teacher = random(0, *MAPS), random(1, *LARGER)
    first = prepared(TERMS[name](), student, teacher)
    optimizer = torch.optim.SGD([*first.parameters(), *leaves(random(3, *MAPS))], lr=0.1)
    for _ in range(2):
        run(first, outputs(*leaves(student)), teacher).backward()
        optimizer.step()
    second = prepared(TERMS[name](), student, teacher, seed=1)
    if list(first.parameters()):
        values = (run(copy.deepcopy(loss), student, teacher) for loss in (first, second))
        assert next(values) != next(values)
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(first, student, teacher), run(second, student, teacher))


@pytest.mark.parametrize("name", OF_ANY_WIDTH)
def test_a_perfect_student_has_nothing_to_learn(name: str) -> None:
    teacher = random(0, *MAPS)
    student = outputs(*(x.clone() for x in teacher.features.values()))
    value = run(TERMS[name](), student := outputs(*leaves(student)), teacher)
    value.backward()
    assert value.abs() < 1e-12
    for x in student.features.values():
        assert x.grad is not None
        assert x.grad.abs().max() < (1e-8 if name == "pkt" else 1e-12)  # for its epsilon


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "dead": torch.zeros_like,
    "constant": lambda x: torch.full_like(x, 3.0),
    "one input, repeated": lambda x: x[:1].expand_as(x),
    "two alike": lambda x: torch.cat([x[:1], x[:-1]]),
    "huge": lambda x: 500 * x,
    "tiny": lambda x: 1e-20 * x,
    "nearly alike": lambda x: 1e4 + 1e-3 * x,
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stays_finite(name: str, extreme: str, count: int) -> None:
    shapes = [(count, *shape[1:]) for shape in MAPS]
    student, teacher = (random(i, *shapes, dtype=torch.float32) for i in range(2))
    loss = prepared(TERMS[name](), student, teacher)
    strange = [EXTREMES[extreme](x).clone() for x in student.features.values()]
    for theirs in (teacher, outputs(*strange)):
        ours = outputs(*(x.clone().requires_grad_() for x in strange))
        value = run(loss, ours, theirs)
        value.backward()
        assert value.isfinite()
        for x in ours.features.values():
            assert x.grad is not None
            assert x.grad.isfinite().all()


def test_sp_ignores_a_networks_scale_and_rotation() -> None:
    student, teacher = random(0, (5, 6)), random(1, (5, 9))
    value = apply(SimilarityPreserving(["a"]), student, teacher)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    other = outputs(3 * student.features["a"] @ turn)
    torch.testing.assert_close(apply(SimilarityPreserving(["a"]), other, teacher), value)


@pytest.mark.parametrize("name", ["pkt", "rkd"])
def test_pkt_ignores_lengths_and_rkd_a_networks_scale_and_place(name: str) -> None:
    student, teacher = (random(i, (5, 6), (5, 6)) for i in range(2))
    value = apply(TERMS[name](), student, teacher)
    x = list(student.features.values())
    moved = [f * torch.arange(1, 6)[:, None] if name == "pkt" else 3 * f + 7 for f in x]
    torch.testing.assert_close(
        apply(TERMS[name](), outputs(*moved), teacher), value, rtol=1e-6, atol=0
    )


def test_rkd_by_hand() -> None:
    s, t = (random(i, (4, 3)).features["a"] for i in range(2))

    def angle(x: Tensor, i: int, j: int, k: int) -> Tensor:
        return F.cosine_similarity(x[j] - x[i], x[k] - x[i], dim=0)

    places = range(4)
    total = sum(
        F.smooth_l1_loss(angle(s, i, j, k), angle(t, i, j, k))
        for i in places
        for j in places
        for k in places
        if i not in (j, k)
    )
    value = apply(RKD(["a"], distance=0, angle=2), outputs(s), outputs(t))
    torch.testing.assert_close(value, 2 * total / 64)


def test_rkd_does_not_chase_the_direction_between_copies_of_one_input() -> None:
    """Synthesized batches hold an input twice; what tells its embeddings apart is rounding."""
    s, t = (random(i, (6, 8), dtype=torch.float32).features["a"] for i in range(2))
    s[1], t[1] = s[0] * (1 + 1e-7), t[0]
    value = apply(RKD(["a"]), outputs(s.requires_grad_()), outputs(t))
    value.backward()
    assert s.grad is not None
    assert s.grad.norm() < 100


def test_distances_keep_their_digits_far_from_the_origin() -> None:
    x = random(0, (6, 8)).features["a"]
    expected = torch.cdist(x, x).square()
    torch.testing.assert_close(squared_distances(x), expected)
    found = squared_distances((x + 1000).float()).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def test_cc_embeds_where_widths_differ_only() -> None:
    student, wider = random(0, (4, 3)), random(1, (4, 5))
    assert not list(prepared(CorrelationCongruence(["a"]), student, student).parameters())
    loss = prepared(CorrelationCongruence(["a"]), student, wider)
    assert [tuple(p.shape) for p in loss.parameters()] == [(5, 3), (5,)]


def test_irg_by_hand() -> None:
    shapes = ((3, 2, 4, 4), (3, 4, 2, 2), (3, 6))
    student, teacher = random(0, *shapes), random(1, *shapes)
    logits = [random(i, (3, 5)).features["a"] for i in (2, 3)]

    def edges(x: Tensor) -> Tensor:
        a = torch.stack([torch.stack([(p - q).square().sum() for q in x]) for p in x])
        return a / a.max()

    def change(x: Outputs) -> Tensor:
        pooled = x.features["a"].reshape(3, 2, 2, 2, 2, 2).mean((3, 5))
        paired = x.features["b"].reshape(3, 2, 2, 2, 2).mean(2)
        a = (pooled - paired).square().sum((1, 2, 3))
        return a / a.max()

    expected = 0.1 * (logits[0] - logits[1]).square().mean()
    for tap in "abc":
        s, t = student.features[tap], teacher.features[tap]
        expected += 2 / 3 * (edges(s) - edges(t)).square().mean()
    expected += 3 * (change(student) - change(teacher)).square().mean()
    both = (Outputs(z, x.features) for z, x in zip(logits, (student, teacher), strict=True))
    value = apply(IRG(["a", "b", "c"], edge=2, transform=3), *both)
    torch.testing.assert_close(value, expected)


def test_ickd_by_hand() -> None:
    student, teacher = random(0, (3, 4, 4, 4)), random(1, (3, 2, 2, 2))
    loss = prepared(ICKD(["a"]), student, teacher)
    small = F.avg_pool2d(student.features["a"], 2)
    embedded = F.conv2d(small, next(loss.parameters()))
    spread, mean = torch.var_mean(embedded, (0, 2, 3), correction=0, keepdim=True)
    embedded = (embedded - mean) / (spread + 1e-5).sqrt()
    expected = torch.zeros((), dtype=torch.float64)
    for s, t in zip(embedded, teacher.features["a"], strict=True):
        rows = [torch.einsum("cij,dij->cd", x, x) for x in (s, t)]
        unit = [x / x.norm(dim=1, keepdim=True) for x in rows]
        expected += (unit[0] - unit[1]).square().sum() / (3 * 2)
    torch.testing.assert_close(apply(loss, student, teacher), expected)


def test_weights_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="distance and angle"):
        RKD(angle=-1)
    with pytest.raises(ValueError, match="IRG's weights"):
        IRG(vertex=-1)
