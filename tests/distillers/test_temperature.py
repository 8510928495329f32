"""Temperatures that are learned against the student, and those that follow the logits' spread."""

import copy
import math

import pytest
import torch
from torch import Tensor

from data.spec import Batch
from distillers.response import KD
from distillers.temperature import ATKD, CTKD, GlobalTemperature, InstanceTemperature
from models.classifier import Outputs


def logits(seed: int, rows: int = 6, classes: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def apply(loss: torch.nn.Module, s: Tensor, t: Tensor) -> Tensor:
    x = torch.zeros(len(s), 1)
    value: Tensor = loss(Outputs(s), Outputs(t), Batch(x))
    return value


def learned(instance: bool) -> CTKD:
    torch.manual_seed(0)
    loss = CTKD(InstanceTemperature(5) if instance else GlobalTemperature())
    with torch.no_grad():
        for parameter in loss.parameters():  # away from where the last layer is 0
            parameter.add_(0.3 * torch.randn_like(parameter))
    return loss.double()


def test_ctkd_is_kd_at_the_temperature_that_it_has_learned() -> None:
    s, t = logits(0), logits(1)
    start = 1 + 20 / (1 + math.exp(-1))
    kd = apply(KD(temperature=start), s, t)
    torch.testing.assert_close(apply(CTKD(GlobalTemperature()).double(), s, t), kd)
    start = 1 + 20 / 2
    kd = apply(KD(temperature=start), s, t)
    torch.testing.assert_close(apply(CTKD(InstanceTemperature(5)).double(), s, t), kd)


def test_every_input_has_its_own_temperature() -> None:
    s, t, loss = logits(0), logits(1), learned(instance=True)
    taus = 1 + 20 * loss.temperature(s, t).sigmoid().squeeze(1)
    assert taus.std() > 0.01
    rows = range(len(s))
    expected = [apply(KD(taus[i].item()), s[i : i + 1], t[i : i + 1]) for i in rows]
    torch.testing.assert_close(apply(loss, s, t), torch.stack(expected).mean())


def test_a_temperature_does_not_depend_on_which_class_it_is() -> None:
    s, t, loss = logits(0), logits(1), learned(instance=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    changed = loss.temperature(s[:, order], t[:, order])
    torch.testing.assert_close(changed, loss.temperature(s, t))


@pytest.mark.parametrize("instance", [False, True])
def test_the_temperature_climbs_as_the_student_descends(instance: bool) -> None:
    s, t, loss = logits(0).requires_grad_(), logits(1), learned(instance)
    loss.at(1.0)
    before = apply(loss, s, t)
    before.backward()
    with torch.no_grad():
        for parameter in loss.parameters():
            assert parameter.grad is not None
            parameter -= 1e-4 * parameter.grad
    assert apply(loss, s, t) > before
    assert s.grad is not None
    assert apply(loss, s - 0.01 * s.grad, t) < before


@pytest.mark.parametrize("instance", [False, True])
def test_the_reversal_scales_the_temperatures_gradient_and_not_the_students(instance: bool) -> None:
    t, loss = logits(1), learned(instance)
    found = []
    for progress in (0.0, 10 / 480, 10 / 240):  # λ = 0, 1/2 and 1
        loss.at(progress)
        s = logits(0).requires_grad_()
        value = apply(loss, s, t)
        found.append(torch.autograd.grad(value, [s, *loss.parameters()]))
    none, half, full = found
    for students, *_ in found:
        torch.testing.assert_close(students, full[0])
    assert all(g.any() for g in full)
    for zero, some, all_of_it in zip(none[1:], half[1:], full[1:], strict=True):
        assert not zero.any()
        torch.testing.assert_close(2 * some, all_of_it)


def test_the_reversal_rises_along_a_cosine_and_stays() -> None:
    loss = CTKD(GlobalTemperature(), curriculum=0.5)
    assert loss.reversal == 0
    found = []
    for progress in (0, 0.125, 0.25, 0.5, 0.9):
        loss.at(progress)
        found.append(loss.reversal)
    assert found == pytest.approx([0, 0.5 - math.sqrt(0.125), 0.5, 1, 1])


@pytest.mark.parametrize("instance", [False, True])
def test_what_was_learned_survives_a_round_trip(instance: bool) -> None:
    first, s, t = learned(instance), logits(0), logits(1)
    second = CTKD(InstanceTemperature(5) if instance else GlobalTemperature()).double()
    assert apply(first, s, t) != apply(second, s, t)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(apply(first, s, t), apply(second, s, t))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("gap", [0.0, 500.0])
def test_learned_temperatures_stay_finite(rows: int, gap: float) -> None:
    for temperature in (GlobalTemperature(), InstanceTemperature(5)):
        loss = CTKD(temperature)
        loss.at(1.0)
        s = (gap * torch.eye(5)[:rows]).requires_grad_()
        value = apply(loss, s, gap * torch.eye(5).flip(0)[:rows])
        gradients = torch.autograd.grad(value, [s, *loss.parameters()])
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradients)


def test_atkd_makes_both_equally_sharp() -> None:
    """The value, written input by input: both have a spread of 2 over their temperature."""
    s, t = logits(0), logits(1)
    values = []
    for a, b in zip(s, t, strict=True):
        tau_a, tau_b = (x.std(correction=0) / 2 for x in (a, b))
        p, q = (b / tau_b).softmax(0), (a / tau_a).softmax(0)
        values.append(tau_a * tau_b * (p * (p / q).log()).sum())
    torch.testing.assert_close(apply(ATKD(), s, t), torch.stack(values).mean(), rtol=1e-6, atol=0)


def test_atkd_is_kd_where_the_spreads_agree() -> None:
    s, t = logits(0)[:1], logits(1)[:1]
    s, t = (4 * (x - x.mean()) / x.std(correction=0) for x in (s, t))
    torch.testing.assert_close(apply(ATKD(2.0), s, t), apply(KD(2.0), s, t), rtol=1e-6, atol=0)


def test_atkd_asks_for_no_scale_and_its_temperature_is_a_constant() -> None:
    s, t = logits(0).requires_grad_(), logits(1)
    gradient = torch.autograd.grad(apply(ATKD(), s, t), s)[0]
    small = (s.detach() / 100).requires_grad_()
    again = torch.autograd.grad(apply(ATKD(), small, t), small)[0]
    torch.testing.assert_close(again, gradient, rtol=1e-3, atol=1e-6)
    tau_s, tau_t = (x.detach().std(1, correction=0, keepdim=True) / 2 for x in (s, t))
    difference = (s / tau_s).softmax(1) - (t / tau_t).softmax(1)
    torch.testing.assert_close(gradient, tau_t * difference / 6, rtol=1e-5, atol=1e-8)


def test_errors() -> None:
    with pytest.raises(ValueError, match="base and span"):
        CTKD(GlobalTemperature(), base=0)
    with pytest.raises(ValueError, match="curriculum"):
        CTKD(GlobalTemperature(), curriculum=0)
    with pytest.raises(ValueError, match="multiplier"):
        ATKD(0)
