"""Attention transfer and CanKD by hand, and what all attention losses on feature maps share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.build import build
from core.objective import Weighted
from distillers.attention import AttentionTransfer
from distillers.base import STAGES, TransferLoss
from distillers.channel import CWD
from distillers.cross_attention import CanKD, CrossAttention
from distillers.semantic import AFD, SemCKD
from engine.choices import ROOT
from engine.config import compose, plain
from models.classifier import Outputs
from tests.distillers.features import TAPS, apply, leaves, outputs, prepared, random

TERMS: dict[str, Callable[[], TransferLoss]] = {
    "at": lambda: AttentionTransfer(TAPS[:2]),
    "cwd": lambda: CWD(TAPS[:2]),
    "semckd": lambda: SemCKD(4, TAPS[:2]),
    "afd": lambda: AFD(TAPS[:2], dim=8),
    "cankd": lambda: CanKD(TAPS[:2]),
}
MAPS = ((4, 6, 8, 8), (4, 5, 4, 4))
LARGER = ((4, 3, 16, 16), (4, 9, 8, 8))
TOKENS = ((4, 17, 7), (4, 17, 7))
SHAPES = {
    "alike": (MAPS, MAPS),
    "larger teacher": (MAPS, LARGER),
    "smaller teacher": (LARGER, MAPS),
    "one channel": (MAPS, ((4, 1, 8, 8), (4, 1, 5, 3))),
    "cnn to vit": (MAPS, TOKENS),
    "vit to cnn": (TOKENS, LARGER),
    "vit to vit": (TOKENS, ((4, 17, 9), (4, 17, 9))),
}


@pytest.fixture(params=TERMS)
def make(request: pytest.FixtureRequest) -> Callable[[], TransferLoss]:
    return TERMS[request.param]


def started(loss: TransferLoss, student: Outputs, teacher: Outputs) -> TransferLoss:
    """The loss with its parameters after one step, when none is zero any more."""
    loss = prepared(loss, student, teacher)
    if list(loss.parameters()):
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        apply(loss, student, teacher).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss


@pytest.mark.parametrize("shapes", SHAPES)
def test_learns_from_maps_of_any_two_shapes(make: Callable[[], TransferLoss], shapes: str) -> None:
    ours, theirs = SHAPES[shapes]
    student, teacher = random(0, *ours), random(1, *theirs)
    loss = started(make(), student, teacher)
    value = apply(loss, student := outputs(*leaves(student)), teacher)
    value.backward()
    assert value.isfinite()
    assert value > 0
    for tensor in (*student.features.values(), *loss.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.any()
        assert tensor.grad.isfinite().all()
    assert not any(x.requires_grad for x in teacher.features.values())


def test_learning_brings_the_student_nearer(make: Callable[[], TransferLoss]) -> None:
    student, teacher = random(0, *MAPS), random(1, *LARGER)
    loss = prepared(make(), student, teacher)
    inputs = leaves(student)
    optimizer = torch.optim.Adam([*inputs, *loss.parameters()], lr=0.02)
    values = []
    for _ in range(30):
        value = apply(loss, outputs(*inputs), teacher)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_its_state_is_all_that_it_learned(make: Callable[[], TransferLoss]) -> None:
    student, teacher = random(0, *MAPS), random(1, *LARGER)
    first = started(make(), student, teacher)
    second = prepared(make(), student, teacher, seed=1)
    if list(first.parameters()):
        assert apply(copy.deepcopy(second), student, teacher) != apply(
            copy.deepcopy(first), student, teacher
        )
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        assert torch.equal(apply(first, student, teacher), apply(second, student, teacher))


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "dead": torch.zeros_like,
    "constant": lambda f: torch.full_like(f, 3.0),
    "huge": lambda f: 500 * f,
    "tiny": lambda f: 1e-20 * f,
    "one class": lambda f: f[:1].expand_as(f),
    "two inputs": lambda f: f[:2],
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("sides", ["student", "teacher", "both"])
def test_stays_finite(make: Callable[[], TransferLoss], extreme: str, sides: str) -> None:
    student, teacher = (random(seed, *MAPS, dtype=torch.float32) for seed in (0, 1))
    loss = started(make(), student, teacher)

    def changed(x: Outputs) -> Outputs:
        return outputs(*map(EXTREMES[extreme], x.features.values()))

    if sides != "teacher" or extreme == "two inputs":
        student = changed(student)
    if sides != "student" or extreme == "two inputs":
        teacher = changed(teacher)
    inputs = [f.clone().requires_grad_() for f in student.features.values()]
    for _ in range(2):
        value = apply(loss, outputs(*inputs), teacher)
        value.backward()
        assert value.isfinite()
    for tensor in (*inputs, *loss.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_vectors_are_refused(make: Callable[[], TransferLoss]) -> None:
    student = random(0, (4, 6), (4, 6))
    with pytest.raises(ValueError, match="choose another"):
        apply(prepared(make(), student, student), student, student)


@pytest.mark.parametrize("make", [TERMS["cwd"], TERMS["cankd"]])
def test_maps_of_one_place_are_refused(make: Callable[[], TransferLoss]) -> None:
    student, teacher = random(0, MAPS[0], (4, 5, 1, 1)), random(1, *MAPS)
    with pytest.raises(ValueError, match="maps of 1x1: choose an earlier tap"):
        prepared(make(), student, teacher)


WEIGHTS = {"at": 1000, "cwd": 50, "catkd": 15, "semckd": 400, "afd": 200, "cankd": 5, "minilm": 1}


@pytest.mark.parametrize("name", WEIGHTS)
def test_its_configuration_has_the_weight_of_the_literature(name: str) -> None:
    node = plain(compose([f"loss={name}", "device=cpu"]))["distiller"]["losses"][name]
    weighted = Weighted(**build(node, batch_size=4))
    assert isinstance(weighted.loss, TransferLoss)
    assert weighted.weight == WEIGHTS[name]
    assert (
        (ROOT / "loss" / f"{name}.yaml").read_text().startswith("# @package distiller.losses\n# ")
    )


def attend(s: Tensor, t: Tensor, p: float = 2.0) -> Tensor:
    return apply(AttentionTransfer(["a"], p), outputs(s), outputs(t))


def feature(seed: int, channels: int = 3, size: tuple[int, int] = (4, 4)) -> Tensor:
    return random(seed, (5, channels, *size)).features["a"]


def test_attention_by_hand() -> None:
    s, t = feature(0), feature(1, channels=7)
    total = 0.0
    for i in range(5):
        q = []
        for x in (s[i], t[i]):
            energy = torch.tensor([[(x[:, r, c] ** 2).sum() for c in range(4)] for r in range(4)])
            q.append(energy / energy.norm())
        total += float((q[0] - q[1]).square().sum())
    assert attend(s, t).item() == pytest.approx(total / (5 * 16), rel=1e-6)


def test_attention_ignores_scale_sign_and_channels() -> None:
    s, t = feature(0), feature(1, channels=7)
    value = attend(s, t)
    assert value > 0
    torch.testing.assert_close(attend(-3 * s, t), value)
    torch.testing.assert_close(attend(s[:, [2, 0, 1]], 0.1 * t), value)
    assert attend(s, 5 * s) < 1e-20


@pytest.mark.parametrize(
    ("student", "teacher"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((8, 4), (4, 8)), ((7, 7), (3, 3))]
)
def test_attention_pools_the_larger_map(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    s, t = feature(0, size=student), feature(1, size=teacher)
    size = (min(student[0], teacher[0]), min(student[1], teacher[1]))
    expected = attend(F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size))
    torch.testing.assert_close(attend(s, t), expected)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_attention_is_finite_on_dead_features(p: float) -> None:
    s = torch.zeros(5, 3, 4, 4, requires_grad=True)
    value = attend(s, feature(1).float(), p)
    value.backward()
    assert value.isfinite()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_attention_pairs_taps_and_sums_over_them() -> None:
    student, teacher = random(0, *MAPS), random(1, *MAPS)
    both = AttentionTransfer([{"student": "a", "teacher": "b"}, "b"])
    expected = attend(student.features["a"], teacher.features["b"])
    expected = expected + attend(student.features["b"], teacher.features["b"])
    torch.testing.assert_close(apply(both, student, teacher), expected)
    every = AttentionTransfer()
    assert [*every.taps] == [(*STAGES, *STAGES)]


def test_the_exponent_is_at_least_1() -> None:
    with pytest.raises(ValueError, match="p must be"):
        AttentionTransfer(p=0.5)


def test_cankd_starts_as_the_distance_of_instance_normalised_maps() -> None:
    student, teacher = random(0, (4, 6, 5, 3)), random(1, (4, 6, 5, 3))
    expected = 0.0
    for i in range(4):
        for c in range(6):
            s, t = (
                (x.features["a"][i, c] - x.features["a"][i, c].mean())
                / (x.features["a"][i, c].var(correction=0) + 1e-5).sqrt()
                for x in (student, teacher)
            )
            expected += float((s - t).square().sum()) / (2 * 4 * 6 * 15)
    loss = prepared(CanKD(["a"]), student, teacher)
    assert apply(loss, student, teacher).item() == pytest.approx(expected)
    same = prepared(CanKD(["a"]), student, student)
    assert apply(same, student, outputs(3 * student.features["a"] + 2)) < 1e-10


def test_cankd_changes_from_there_and_all_of_it_learns() -> None:
    student, teacher = random(0, MAPS[0]), random(1, LARGER[0])
    first = prepared(CanKD(["a"]), student, teacher)
    loss = started(CanKD(["a"]), student, teacher)
    before = dict(first.named_parameters())
    apply(loss, student, teacher).backward()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    optimizer.step()
    for name, p in loss.named_parameters():
        assert not torch.equal(p, before[name]), name
    assert apply(loss, student, teacher) < apply(first, student, teacher)


def test_cross_attention_by_hand() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(4).double()
    torch.nn.init.normal_(attention.norm.weight)
    torch.nn.init.normal_(attention.norm.bias)
    s, t = torch.randn(2, 3, 4, 4, 5, dtype=torch.float64)
    theta, phi, g = (m(x) for m, x in zip(attention.children(), (s, t, t), strict=False))
    pooled = [  # 4 × 5 places become 2 × 2; the last column has no partner
        torch.stack(
            [x[:, :, r : r + 2, c : c + 2].amax((2, 3)) for r in (0, 2) for c in (0, 2)], dim=2
        )
        for x in (phi, g)
    ]
    seen = torch.zeros(3, 2, 4, 5, dtype=torch.float64)
    for b, row, column, place in torch.cartesian_prod(*map(torch.arange, (3, 4, 5, 4))):
        weight = theta[b, :, row, column] @ pooled[0][b, :, place] / 4
        seen[b, :, row, column] += weight * pooled[1][b, :, place]
    out = torch.einsum("oi,bihw->bohw", attention.output.weight[:, :, 0, 0], seen)
    mean, variance = out.mean((0, 2, 3)), out.var((0, 2, 3), correction=0)
    normal = (out - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    scale, shift = (p[:, None, None] for p in (attention.norm.weight, attention.norm.bias))
    torch.testing.assert_close(attention(s, t), s + scale * normal + shift)
