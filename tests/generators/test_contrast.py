"""The contrastive loss against a direct computation, and its memory."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from core.functional import supervised_contrast
from core.runtime import Runtime
from generators.base import Synthesis
from generators.contrast import ClassContrast, InstanceContrast
from generators.losses import Activation, Adversarial, BatchNormStatistics, OneHot
from generators.views import Jitter
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN
from tests.generators.small import (
    CLASSES,
    SPEC,
    generative,
    inversion,
    objective,
    same,
    snapshot,
    student,
    teacher,
)


def loss(**kwargs: Any) -> InstanceContrast:
    torch.manual_seed(0)
    settings = {"memory": 12, "negatives": 7, "width": 5, "temperature": 0.3}
    return InstanceContrast(teacher(), Runtime(device="cpu"), **settings | kwargs)


def synthesis(features: Tensor, local: Tensor) -> Synthesis:
    def outputs(x: Tensor) -> Outputs:
        return Outputs(x, {"pooled": x})

    return Synthesis(
        torch.zeros(len(features), *SPEC.shape), outputs(features), local=outputs(local)
    )


def test_it_is_the_contrastive_loss_computed_one_by_one() -> None:
    contrast = loss()
    torch.manual_seed(1)
    before, x = torch.randn(2, 9, 6), torch.randn(2, 4, 6, requires_grad=True)  # global, local
    drawn = torch.rand(9, generator=Runtime(device="cpu").noise("negatives", 0)).argsort()[:7]

    def unit(v: Tensor) -> Tensor:
        v = contrast.head(v)
        return v / v.norm()

    def mean(rows: range, keys: list[Tensor], queries: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for i in rows:
            scores = torch.stack([unit(queries[i]) @ unit(k).detach() / 0.3 for k in keys])
            total += -(scores[i].exp() / scores.exp().sum()).log()
        return total / len(rows)

    keys, queries = ([*x[view], *before[view][drawn]] for view in (0, 1))
    first = contrast(synthesis(*x))
    torch.testing.assert_close(first, mean(range(4), keys[:4], queries[:4]))
    contrast.commit(synthesis(*before))
    value = contrast(synthesis(*x))
    expected = mean(range(4), keys, queries) + mean(range(4, 11), keys, queries)
    torch.testing.assert_close(value, expected)
    inputs = [x, *contrast.head.parameters()]
    for found, true in zip(
        torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(found, true)
    (gradient,) = torch.autograd.grad(contrast(synthesis(*x)), x)
    assert not gradient[0].any()
    assert gradient[1].any()


def test_maps_and_tokens_are_averaged_over_places() -> None:
    contrast = loss(taps=["conv1", "pooled"])
    t = teacher().frozen(["conv1", "pooled"])
    x, local = torch.rand(2, 3, *SPEC.shape)
    contrast.commit(Synthesis(x, t(x), local=t(local)))
    for view, seen in ((0, local), (1, x)):
        features = t(seen).features
        expected = torch.cat([features["conv1"].mean((2, 3)), features["pooled"]], dim=1)
        torch.testing.assert_close(contrast.memory[:3, view], expected)


def test_by_default_the_stages_are_compared() -> None:
    network = Classifier(DigitsCNN(1, CLASSES, width=3), SPEC)
    contrast = InstanceContrast(network, Runtime(device="cpu"), memory=5)
    assert contrast.teacher_taps == ("stage1", "stage2")
    assert contrast.memory.shape == (5, 2, 3 + 6)
    assert contrast.head[-1].out_features == 256


def test_the_memory_holds_the_latest_features() -> None:
    contrast = loss(memory=5)
    rows = torch.arange(8.0)[:, None].expand(8, 6)
    for part in (rows[:3], rows[3:6], rows[6:]):
        contrast.commit(synthesis(part, part + 100))
    assert sorted(contrast.memory[:, 1, 0].tolist()) == [3, 4, 5, 6, 7]
    assert sorted(contrast.memory[:, 0, 0].tolist()) == [103, 104, 105, 106, 107]
    many = torch.arange(20.0)[:, None].expand(20, 6)
    contrast.commit(synthesis(many, many))
    assert sorted(contrast.memory[:, 1, 0].tolist()) == [15, 16, 17, 18, 19]


def test_the_projection_is_trained_saved_and_no_part_of_teacher_or_student() -> None:
    contrast = loss()
    source = inversion(
        objective=objective(one_hot=OneHot(), contrast=contrast), local_views=[Jitter(2)]
    )
    before = snapshot(contrast)
    source.next()
    after = snapshot(contrast)
    assert all(not torch.equal(before[k], after[k]) for k in before if k.startswith("head"))
    assert contrast.added == 8
    state = source.state_dict()["synthesizer"]["objective"]
    assert any("head" in k for k in state)
    assert any("memory" in k for k in state)


def test_a_second_view_is_needed() -> None:
    with pytest.raises(ValueError, match=r"name synthesis\.local_views"):
        inversion(objective=objective(contrast=loss()))


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"memory": 0}, {"negatives": 0}])
def test_settings_that_do_not_fit(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        loss(**wrong)


def test_classes_are_contrasted_in_both_networks_views() -> None:
    torch.manual_seed(0)
    s, t = student(), teacher()
    contrast = ClassContrast(t, s, temperature=0.3, width=5)
    x = torch.rand(6, *SPEC.shape)
    seen, known = t.frozen(["pooled"])(x), s.frozen(["pooled"])(x)
    a = contrast.teacher_head(seen.features["pooled"])
    b = contrast.student_head(known.features["pooled"])
    assert a.shape == b.shape == (6, 5)
    for label in (torch.arange(6) % CLASSES, None):
        value = contrast(Synthesis(x, seen, known, label))
        used = seen.logits.argmax(1) if label is None else label
        torch.testing.assert_close(value, supervised_contrast(a, b, used, 0.3))


def test_it_trains_the_heads_and_the_generator_alone() -> None:
    s, t = student(), teacher()
    torch.manual_seed(0)
    contrast = ClassContrast(t, s, width=5)
    source = generative(teacher=t, student=s, objective=objective(c=contrast), conditional=True)
    held, heads, made = snapshot(s), snapshot(contrast), snapshot(source.synthesizer.generator)
    source.next()
    assert same(held, snapshot(s))
    assert all(m.training for m in s.modules())
    assert all(p.grad is None for p in (*s.parameters(), *t.parameters()))
    assert not any(torch.equal(heads[k], v) for k, v in snapshot(contrast).items())
    moved = {
        k for k, v in snapshot(source.synthesizer.generator).items() if not torch.equal(made[k], v)
    }
    assert "linear.weight" in moved
    assert any("head" in key for key in source.state_dict()["synthesizer"]["objective"])


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"width": 0}])
def test_supervised_settings_that_do_not_fit(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ClassContrast(teacher(), student(), **wrong)


def test_it_remembers_the_inputs_that_a_round_keeps_and_not_its_last() -> None:
    """FastDFKD's moving statistics, beside it, remember the last ones, as its authors' do."""
    contrast, moving = loss(memory=8), BatchNormStatistics(momentum=0.5)
    source = inversion(
        objective=objective(contrast=contrast, moving=moving),
        optimizer=functools.partial(torch.optim.SGD, lr=1e-3),  # the views decide which is best
        views=[Jitter(3)],
        local_views=[Jitter(1)],
        iterations=12,
    )
    seen: list[tuple[float, Synthesis]] = []

    def record(_: Any, args: tuple[Synthesis], losses: Any) -> None:
        seen.append((losses.total.item(), args[0]))

    source.synthesizer.observe.objective.register_forward_hook(record)
    source.next()
    least = min(range(len(seen)), key=lambda i: seen[i][0])
    assert 0 < least < len(seen) - 1
    assert torch.equal(contrast.memory[:, 1], seen[least][1].teacher.features["pooled"])
    assert torch.equal(moving.earlier[0], seen[-1][1].teacher.statistics[0].mean)


def test_of_a_round_only_what_a_memory_reads_is_kept() -> None:
    """With needs of others beside it: statistics, the student and another tap."""
    source = inversion(
        objective=objective(
            contrast=loss(),
            bn=BatchNormStatistics(),
            adversarial=Adversarial(),
            act=Activation("conv1"),
        ),
        local_views=[Jitter(1)],
    )
    kept: list[Synthesis | None] = []
    commit = source.synthesizer.observe.commit
    source.synthesizer.observe.commit = lambda: [
        kept.append(source.synthesizer.observe.kept),
        commit(),
    ]  # type: ignore
    source.next()
    source.next()
    for synthesis in kept:
        assert synthesis is not None
        assert synthesis.student is None
        for outputs in (synthesis.teacher, synthesis.local):
            assert outputs is not None
            assert list(outputs.features) == ["pooled"]
            assert not outputs.statistics
