"""Schedules are functions of progress: their values, their errors, and no state beside them."""

import math

import pytest
import torch
from torch import nn

from core.schedules import Factor, Schedule, after, constant, cosine, multistep, ramp, until


def test_constant() -> None:
    assert [constant()(p) for p in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]


def test_cosine_closed_form() -> None:
    factor = cosine(floor=0.2)
    for progress in (0.0, 0.1, 0.5, 0.9, 1.0):
        expected = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * progress))
        assert factor(progress) == pytest.approx(expected, abs=1e-15)
    assert factor(0.0) == 1.0
    assert factor(1.0) == pytest.approx(0.2)


def test_cosine_spans_what_the_warmup_leaves() -> None:
    factor = cosine(warmup=0.2)
    assert factor(0.2) == 1.0
    assert factor(0.6) == pytest.approx(0.5)
    assert factor(1.0) == pytest.approx(0.0)


def test_multistep_steps_at_the_milestones() -> None:
    factor = multistep(milestones=[0.5, 0.75], gamma=0.1)
    values = [factor(p) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_until_ends() -> None:
    factor = until(0.25, warmup=0.1)
    values = [factor(p) for p in (0.0, 0.05, 0.1, 0.24, 0.25, 1.0)]
    assert values == pytest.approx([0, 0.5, 1, 1, 0, 0])
    for end in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"{end}"):
            until(end)


def test_after_begins() -> None:
    factor = after(0.3)
    assert [factor(p) for p in (0.0, 0.29, 0.3, 1.0)] == [0, 0, 1, 1]
    for start in (0.0, 1.0, 60.0):
        with pytest.raises(ValueError, match=f"{start}"):
            after(start)


def test_ramp_is_a_share_of_the_run() -> None:
    factor = ramp(80 / 300)
    epochs = (0, 40, 79, 80, 81, 300)
    expected = [math.exp(-5), math.exp(-1.25), math.exp(-5 / 80**2), 1, 1, 1]
    assert [factor(e / 300) for e in epochs] == pytest.approx(expected, rel=1e-9)
    for end in (0.0, 80.0):
        with pytest.raises(ValueError, match=f"{end}"):
            ramp(end)


@pytest.mark.parametrize("make", [constant, cosine, multistep])
def test_warmup_is_linear(make: type) -> None:
    factor: Factor = make(warmup=0.1)
    assert [factor(p) for p in (0.0, 0.025, 0.05, 0.1)] == pytest.approx([0, 0.25, 0.5, 1])


@pytest.mark.parametrize(
    "milestones", [[0.0, 0.5], [0.5, 1.0], [60, 120], [0.75, 0.5], [0.5, 0.5], [-0.1]]
)
def test_milestones_are_ascending_fractions(milestones: list[float]) -> None:
    with pytest.raises(ValueError, match="milestones are fractions"):
        multistep(milestones)


@pytest.mark.parametrize("make", [constant, cosine, multistep])
@pytest.mark.parametrize("warmup", [-0.1, 1.0, 500])
def test_warmup_is_a_fraction(make: type, warmup: float) -> None:
    with pytest.raises(ValueError, match="warmup is a fraction"):
        make(warmup=warmup)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match="floor"):
        cosine(floor=1.5)
    with pytest.raises(ValueError, match="gamma"):
        multistep(gamma=0.0)


def make_optimizer() -> torch.optim.Optimizer:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    return torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)


def test_schedule_scales_every_group_from_its_own_rate() -> None:
    optimizer = make_optimizer()
    schedule = Schedule(optimizer, cosine())
    for progress in (0.7, 0.5, 0.5):  # stateless: neither order nor repetition matters
        schedule.apply(progress)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.25])


def test_schedule_resumes_from_the_optimizer_alone() -> None:
    first = make_optimizer()
    Schedule(first, cosine()).apply(0.9)
    second = make_optimizer()
    second.load_state_dict(first.state_dict())
    Schedule(second, cosine()).apply(
        0.5
    )  # made after loading, when lr is no longer the initial one
    assert [g["lr"] for g in second.param_groups] == pytest.approx([0.05, 0.25])
    before = make_optimizer()
    schedule = Schedule(before, cosine())
    before.load_state_dict(first.state_dict())
    schedule.apply(0.5)
    assert [g["lr"] for g in before.param_groups] == pytest.approx([0.05, 0.25])


def test_schedule_fills_a_tensor_rate_in_place() -> None:
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=rate, foreach=False)
    Schedule(optimizer, cosine()).apply(0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.05)
