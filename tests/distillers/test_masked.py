"""Masked generative distillation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from core.runtime import Runtime
from distillers.masked import MGD
from tests.distillers.features import apply, leaves, prepared, random


def make(seed: int = 0, **settings: Any) -> MGD:
    return MGD(Runtime("cpu", seed=seed), ("a",), **settings)


def test_without_a_mask_it_is_the_generated_maps_squared_distance() -> None:
    student, teacher = random(0, (3, 4, 5, 5)), random(1, (3, 6, 5, 5))
    loss = prepared(make(ratio=0.0), student, teacher)
    [generate] = loss.generators
    first, second = generate[0], generate[2]  # type: ignore[index]
    weight = loss.adapters[0].projection.weight[:, :, 0, 0]  # type: ignore[union-attr,index]
    aligned = torch.einsum("oc,bchw->bohw", weight, student.features["a"])
    made = second(first(aligned).clamp_min(0))
    expected = sum((m - t).square().sum() for m, t in zip(made, teacher.features["a"], strict=True))
    torch.testing.assert_close(apply(loss, student, teacher), expected / 3)  # type: ignore[operator]


@pytest.mark.parametrize(("mask", "constant"), [("channels", (2, 3)), ("places", (1,))])
def test_what_is_masked(mask: str, constant: tuple[int, ...]) -> None:
    student = teacher = random(0, (40, 8, 5, 5))
    loss = prepared(make(ratio=0.3, mask=mask), student, teacher)
    seen: list[Any] = []
    loss.generators[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    apply(loss, student, teacher)
    kept = seen[0] != 0
    assert torch.equal(seen[0][kept], student.features["a"][kept])
    whole = kept.all(dim=constant[0]) if len(constant) == 1 else kept.flatten(2).all(dim=2)
    gone = ~(kept.any(dim=constant[0]) if len(constant) == 1 else kept.flatten(2).any(dim=2))
    assert torch.equal(whole, ~gone)  # all of it or nothing
    assert 0.2 < gone.double().mean() < 0.4
    assert not torch.equal(gone[0], gone[1])


def test_masks_follow_seed_and_step_and_continue_after_a_round_trip() -> None:
    student, teacher = random(0, (3, 16, 4, 4)), random(1, (3, 16, 4, 4))
    loss = prepared(make(ratio=0.5), student, teacher)
    other = prepared(make(seed=1, ratio=0.5), student, teacher)
    first = apply(loss, student, teacher)
    assert first != apply(other, student, teacher)
    resumed = prepared(make(ratio=0.5), student, teacher, seed=5)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    torch.rand(3)
    second = apply(loss, student, teacher)
    assert second != first
    assert torch.equal(apply(resumed, student, teacher), second)


def test_other_sizes_and_kinds_and_gradients() -> None:
    for shape in ((2, 4, 3, 3), (2, 4, 8, 8), (2, 17, 4)):  # the last: tokens of a ViT
        student, teacher = random(0, shape), random(1, (2, 6, 4, 4))
        loss = prepared(make(), student, teacher)
        inputs = leaves(student)
        apply(loss, student, teacher).backward()
        assert inputs[0].grad is not None
        assert inputs[0].grad.any()
        assert all(p.grad is not None and p.grad.any() for p in loss.parameters())


def test_equal_channels_need_no_alignment() -> None:
    student = random(0, (2, 6, 4, 4))
    loss = prepared(make(), student, student)
    assert isinstance(loss.adapters[0].projection, nn.Identity)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="probability"):
        make(ratio=1.0)
    with pytest.raises(ValueError, match="'channels' or 'places'"):
        make(mask="pixels")
    vectors = random(0, (2, 6))
    with pytest.raises(ValueError, match="choose another"):
        prepared(make(), vectors, vectors)
