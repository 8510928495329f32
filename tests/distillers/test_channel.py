"""Channel-wise distillation and class attention transfer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.spec import InputSpec
from distillers.base import Side, Taps, side
from distillers.channel import CATKD, CWD
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN
from models.external import timm_model
from models.lenet import LeNet5
from tests.distillers.features import apply, outputs, prepared, random

SPEC = InputSpec((1, 8, 8))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_by_hand(temperature: float) -> None:
    student, teacher = random(0, (2, 3, 2, 2)), random(1, (2, 3, 2, 2))
    total = 0.0
    for s, t in zip(student.features["a"], teacher.features["a"], strict=True):
        for ours, theirs in zip(s, t, strict=True):
            q, p = (
                [math.exp(v / temperature) for v in x.flatten().tolist()] for x in (ours, theirs)
            )
            total += sum(
                a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True)
            )
    loss = prepared(CWD(["a"], temperature), student, teacher)
    expected = temperature**2 * total / (2 * 3)
    assert apply(loss, student, teacher).item() == pytest.approx(expected)


def test_cwd_ignores_what_all_places_of_a_channel_share() -> None:
    student, teacher = random(0, (4, 6, 4, 4)), random(1, (4, 6, 4, 4))
    loss = prepared(CWD(["a"]), student, teacher)
    value = apply(loss, student, teacher)
    assert value > 0
    shift = random(2, (4, 6, 1, 1)).features["a"]
    shifted = outputs(student.features["a"] + shift)
    torch.testing.assert_close(apply(loss, shifted, teacher), value)
    assert apply(loss, shifted, student).abs() < 1e-12


def test_cwd_projects_only_where_channels_differ() -> None:
    student, teacher = random(0, (4, 6, 4, 4)), random(1, (4, 5, 8, 8))
    assert not list(prepared(CWD(["a"]), student, student).parameters())
    assert len(list(prepared(CWD(["a"]), student, teacher).parameters())) == 1


def test_cwd_needs_a_positive_temperature() -> None:
    with pytest.raises(ValueError, match="temperature"):
        CWD(temperature=0)


def network(width: int, tap: str = "stage2", module: nn.Module | None = None) -> Classifier:
    torch.manual_seed(width)
    return Classifier(module or DigitsCNN(1, 5, width), SPEC, taps=[tap]).double()


def classmaps(
    student: Classifier, teacher: Classifier, taps: Taps = ("stage2",), **settings: Any
) -> tuple[CATKD, Outputs, Outputs]:
    """The loss, and the two networks' outputs on a batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    loss = CATKD(taps, **settings)
    view = teacher.frozen(loss.teacher_taps)
    with torch.no_grad():
        loss.prepare(side(student, student.eval()(x)), side(view, view(x)))
    return loss, student(x), view(x)


def by_hand(s: Tensor, t: Tensor, heads: tuple[Tensor, ...], normalize: bool) -> float:
    """CAT-KD of maps of 2 × 2 or 4 × 4 places, class by class."""
    total = 0.0
    for i in range(len(s)):
        for k in range(heads[0].shape[0]):
            both = []
            for x, w in ((s[i], heads[0][k]), (t[i], heads[1][k])):
                cam = sum(w[c] * x[c] for c in range(len(w)))
                n = cam.shape[0] // 2
                pooled = torch.stack(
                    [cam[r : r + n, c : c + n].mean() for r in (0, n) for c in (0, n)]
                )
                both.append(pooled / pooled.norm() if normalize else pooled)
            total += float((both[0] - both[1]).square().sum())
    return total / (len(s) * heads[0].shape[0] * 4)


@pytest.mark.parametrize("normalize", [True, False])
def test_catkd_by_hand(normalize: bool) -> None:
    student, teacher = network(4), network(6)
    loss, s, t = classmaps(student, teacher, normalize=normalize)
    heads = tuple(x.module.linear.weight.detach() for x in (student, teacher))
    expected = by_hand(s.features["stage2"].detach(), t.features["stage2"], heads, normalize)
    assert apply(loss, s, t).item() == pytest.approx(expected)


def test_catkd_pools_larger_maps_and_normalises_direction_only() -> None:
    s, t = random(0, (3, 4, 4, 4)), random(1, (3, 6, 2, 2))
    heads = tuple(nn.Linear(width, 5).double() for width in (4, 6))
    for x, head in zip((s, t), heads, strict=True):
        x.logits = head(x.features["a"].mean((2, 3)))
    loss = CATKD(["a"])
    loss.prepare(Side(s, heads[0]), Side(t, heads[1]))
    value = apply(loss, s, t)
    weights = tuple(head.weight.detach() for head in heads)
    expected = by_hand(s.features["a"], t.features["a"], weights, True)
    assert value.item() == pytest.approx(expected)
    for tap in (s, t):
        tap.features["a"] = 3 * tap.features["a"]
    torch.testing.assert_close(apply(loss, s, t), value)


def test_catkd_of_one_place_compares_logits_without_their_bias() -> None:
    student, teacher = network(4), network(6)
    loss, s, t = classmaps(student, teacher, size=1, normalize=False)
    both = zip((student, teacher), (s, t), strict=True)
    ours, theirs = (x.logits - net.module.linear.bias for net, x in both)
    torch.testing.assert_close(apply(loss, s, t), (ours - theirs).square().mean())


def test_catkd_teaches_the_students_head_and_owns_nothing() -> None:
    student, teacher = network(4), network(6)
    loss, s, t = classmaps(student, teacher)
    apply(loss, s, t).backward()
    for p in (student.module.linear.weight, student.module.stage1[0].weight):
        assert p.grad is not None
        assert p.grad.any()
    assert student.module.linear.bias.grad is None  # class-activation maps leave it out
    assert all(p.grad is None for p in teacher.parameters())
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_catkd_sees_the_heads_as_they_are_now() -> None:
    student, teacher = network(4), network(6)
    loss, s, t = classmaps(student, teacher)
    before = apply(loss, s, t)
    with torch.no_grad():
        student.module.linear.weight.neg_()
    middle = apply(loss, s, t)
    teacher.load_state_dict({k: -v for k, v in teacher.state_dict().items()})
    assert before != middle
    torch.testing.assert_close(apply(loss, s, t), before)


def test_catkd_between_a_cnn_and_a_vit() -> None:
    pytest.importorskip("timm")
    settings = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = timm_model("vit_tiny_patch16_224", 1, 5, **settings, global_pool="avg", fc_norm=False)
    taps = [{"student": "stage2", "teacher": "norm"}]
    loss, s, t = classmaps(network(4), network(1, "norm", vit), taps)
    value = apply(loss, s, t)
    value.backward()
    assert 0 < value < 1


def test_catkd_is_finite_where_a_class_is_everything() -> None:
    features = random(0, (4, 6, 4, 4), dtype=torch.float32).features["a"]
    head = nn.Linear(6, 3)
    for scale in (0.0, 1e-20, 500.0):
        s = outputs((scale * features).requires_grad_())
        t = outputs(features[:1].expand(4, -1, -1, -1))
        for x in (s, t):
            x.logits = head(x.features["a"].mean((2, 3))).detach()
        loss = CATKD(["a"])
        loss.prepare(Side(s, head), Side(t, head))
        leaf = s.features["a"]
        value = apply(loss, s, t)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("student", "taps"),
    [
        (lambda: network(4, "stage1"), ["stage1"]),
        (
            lambda: network(4, "stage2.4"),  # before the last rectifier and pooling
            [{"student": "stage2.4", "teacher": "stage2"}],
        ),
        (
            lambda: Classifier(LeNet5(1, 5), InputSpec((1, 32, 32)), taps=["stage2"]).double(),
            ["stage2"],
        ),
    ],
)
def test_catkd_refuses_a_map_that_the_head_does_not_read(student: Any, taps: Taps) -> None:
    ours = student()
    x = torch.rand(2, *ours.spec.shape, dtype=torch.float64)
    loss = CATKD(taps)
    teacher = network(6, loss.teacher_taps[0])
    y = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad(), pytest.raises(ValueError, match=r"the student's tap .* is another"):
        loss.prepare(side(ours, ours.eval()(x)), side(teacher, teacher.eval()(y)))


def test_catkd_needs_linear_heads_and_a_size() -> None:
    x = random(0, (2, 3, 4, 4))
    with pytest.raises(ValueError, match="unlike the student"):
        CATKD(["a"]).prepare(Side(x), Side(x))
    with pytest.raises(ValueError, match="size must be"):
        CATKD(size=0)


def test_catkd_is_0_for_a_perfect_student() -> None:
    teacher = network(4)
    loss, _, t = classmaps(network(4), teacher)
    assert apply(loss, t, t) < 1e-20
