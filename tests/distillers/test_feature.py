"""Losses on features, those of all three files where a property is common to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.build import build
from core.objective import Weighted
from distillers.base import TransferLoss
from distillers.boundary import OFD, ActivationBoundary
from distillers.connector import places
from distillers.factor import FactorTransfer
from distillers.feature import FSP, NST, VID, FitNet
from engine.choices import ROOT
from engine.config import compose, plain
from models.classifier import Outputs
from tests.distillers.features import (
    TAPS,
    apply,
    check_reference,
    leaves,
    outputs,
    prepared,
    random,
)

TERMS: dict[str, Callable[[], TransferLoss]] = {
    "fitnet": lambda: FitNet(TAPS[:2]),
    "nst": lambda: NST(TAPS[:2]),
    "fsp": lambda: FSP(TAPS[:2]),
    "vid": lambda: VID(TAPS[:2]),
    "ft": lambda: FactorTransfer(TAPS[:2]),
    "ab": lambda: ActivationBoundary(TAPS[:2]),
    "ofd": lambda: OFD(TAPS[:2]),
}
MAPS = ((4, 6, 8, 8), (4, 5, 4, 4))
LARGER = ((4, 3, 16, 16), (4, 9, 8, 8))
TOKENS = ((4, 17, 7), (4, 17, 7))
SHAPES = {
    "alike": (MAPS, MAPS),
    "larger teacher": (MAPS, LARGER),
    "smaller teacher": (LARGER, MAPS),
    "cnn to vit": (MAPS, TOKENS),
    "vit to cnn": (TOKENS, LARGER),
    "vit to vit": (TOKENS, ((4, 17, 9), (4, 17, 9))),
}


@pytest.fixture(params=TERMS)
def make(request: pytest.FixtureRequest) -> Callable[[], TransferLoss]:
    return TERMS[request.param]


@pytest.mark.parametrize("shapes", SHAPES)
def test_learns_from_features_of_any_two_shapes(
    make: Callable[[], TransferLoss], shapes: str
) -> None:
    ours, theirs = SHAPES[shapes]
    student, teacher = random(0, *ours), random(1, *theirs)
    loss = prepared(make(), student, teacher)
    value = apply(loss, student := outputs(*leaves(student)), teacher)
    value.backward()
    assert value.isfinite()
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
    assert values[-1] < 0.95 * values[0]  # the log of VID's large variance falls slowly


def test_its_state_is_all_that_it_learned(make: Callable[[], TransferLoss]) -> None:
    student, teacher = random(0, *MAPS), random(1, *LARGER)
    first = prepared(make(), student, teacher)
    optimizer = torch.optim.SGD([*first.parameters(), *leaves(random(3, *MAPS))], lr=0.1)
    for _ in range(2):
        apply(first, outputs(*leaves(student)), teacher).backward()
        optimizer.step()
    second = prepared(make(), student, teacher, seed=1)
    if list(first.parameters()):
        assert apply(copy.deepcopy(second), student, teacher) != apply(
            copy.deepcopy(first), student, teacher
        )
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        assert torch.equal(apply(first, student, teacher), apply(second, student, teacher))


def constant(value: float) -> Callable[[Outputs], Outputs]:
    return lambda x: outputs(*(torch.full_like(f, value) for f in x.features.values()))


def scaled(factor: float) -> Callable[[Outputs], Outputs]:
    return lambda x: outputs(*(factor * f for f in x.features.values()))


def one_class(x: Outputs) -> Outputs:
    return outputs(*(f[:1].expand_as(f) for f in x.features.values()))


EXTREMES: dict[str, Callable[[Outputs], Outputs]] = {
    "dead": constant(0.0),
    "constant": constant(3.0),
    "huge": scaled(500.0),
    "tiny": scaled(1e-20),
    "one class": one_class,
    "two inputs": lambda x: outputs(*(f[:2] for f in x.features.values())),
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("sides", ["student", "teacher", "both"])
def test_stays_finite(make: Callable[[], TransferLoss], extreme: str, sides: str) -> None:
    student, teacher = (random(seed, *MAPS, dtype=torch.float32) for seed in (0, 1))
    loss = prepared(make(), student, teacher)
    change = EXTREMES[extreme]
    if sides != "teacher" or extreme == "two inputs":
        student = change(student)
    if sides != "student" or extreme == "two inputs":
        teacher = change(teacher)
    inputs = [f.clone().requires_grad_() for f in student.features.values()]
    for _ in range(2):
        value = apply(loss, outputs(*inputs), teacher)
        value.backward()
        assert value.isfinite()
    for tensor in (*inputs, *loss.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_its_configuration_has_the_weight_of_the_literature(name: str) -> None:
    node = plain(compose([f"loss={name}", "device=cpu"]))["distiller"]["losses"][name]
    weights = {"fitnet": 100, "nst": 50, "ft": 200, "ab": 1, "ofd": 1e-3, "vid": 1, "fsp": 50}
    weighted = Weighted(**build(node))
    assert isinstance(weighted.loss, type(TERMS[name]()))
    weighted.at(0.1)
    assert weighted.weight == weights[name]
    weighted.at(0.13)
    assert weighted.off == (name in ("ab", "fsp"))  # which initialise
    assert (
        (ROOT / "loss" / f"{name}.yaml").read_text().startswith("# @package distiller.losses\n# ")
    )


@pytest.mark.parametrize(("name", "make"), [("nst_poly2", NST), ("fsp", FSP)])
def test_equals_the_reference(
    name: str, make: Callable[[tuple[str, ...]], TransferLoss], shared: Path
) -> None:
    check_reference(name, make(TAPS), shared)


def test_fitnet_regresses_at_each_place() -> None:
    student, teacher = random(0, MAPS[0]), random(1, (4, 2, 8, 8))
    loss = prepared(FitNet(["a"]), student, teacher)
    regressor: Any = loss.regressors[0]
    weight = regressor.adapter.projection.weight[:, :, 0, 0]
    s, t = student.features["a"], teacher.features["a"]
    projected = torch.zeros_like(t)
    for i, row, column in torch.cartesian_prod(*map(torch.arange, (4, 8, 8))):
        projected[i, :, row, column] = weight @ s[i, :, row, column]
    mean, variance = projected.mean((0, 2, 3)), projected.var((0, 2, 3), correction=0)
    normal = (projected - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    torch.nn.init.constant_(regressor.norm.weight, 2.0)
    torch.nn.init.constant_(regressor.norm.bias, 0.3)
    expected = (2 * normal + 0.3 - t).square().mean()
    torch.testing.assert_close(apply(loss, student, teacher), expected)
    assert len(list(prepared(FitNet(["a"]), student, student).parameters())) == 3


def test_nst_by_hand() -> None:
    student, teacher = random(0, (2, 3, 2, 2)), random(1, (2, 5, 2, 2))
    total = 0.0
    for s, t in zip(student.features["a"], teacher.features["a"], strict=True):
        rows = [[f.flatten() / f.norm() for f in x] for x in (s, t)]
        for i, j, sign in ((0, 0, 1), (1, 1, 1), (0, 1, -2)):
            kernels = [float(a @ b) ** 2 for a in rows[i] for b in rows[j]]
            total += sign * sum(kernels) / len(kernels) / 2
    assert apply(NST(["a"]), student, teacher).item() == pytest.approx(total)


def test_nst_ignores_scale_sign_and_order_of_channels() -> None:
    student, teacher = random(0, MAPS[0]), random(1, (4, 9, 8, 8))
    value = apply(NST(["a"]), student, teacher)
    assert value > 0
    other = outputs(-3 * student.features["a"].flip(1))
    torch.testing.assert_close(apply(NST(["a"]), other, teacher), value)
    assert apply(NST(["a"]), other, student).abs() < 1e-12


def test_fsp_by_hand() -> None:
    shapes = ((2, 3, 4, 4), (2, 2, 4, 4), (2, 4, 2, 2))
    student, teacher = random(0, *shapes), random(1, *shapes)

    def flows(x: Outputs, i: int) -> tuple[Tensor, Tensor]:
        a, b, c = (f[i] for f in x.features.values())
        halved = b.reshape(2, 2, 2, 2, 2).mean((2, 4))
        return torch.einsum("chw,dhw->cd", a, b) / 16, torch.einsum("chw,dhw->cd", halved, c) / 4

    total = 0.0
    for i in range(2):
        for s, t in zip(flows(student, i), flows(teacher, i), strict=True):
            total += (s - t).square().mean().item() / 2
    assert apply(FSP(TAPS), student, teacher).item() == pytest.approx(total)
    loss = prepared(FSP(TAPS), student, teacher)
    assert not list(loss.parameters())
    assert apply(loss, student, teacher).item() == pytest.approx(total)
    assert apply(loss, teacher, teacher) == 0


def test_fsp_needs_two_taps() -> None:
    student = random(0, MAPS[0])
    with pytest.raises(ValueError, match="it has one tap, a: give"):
        prepared(FSP(["a"]), student, student)


@pytest.mark.parametrize("loss", [NST(["a"]), FSP(["a", "b"]), FactorTransfer(["a"])])
def test_losses_on_maps_refuse_vectors(loss: TransferLoss) -> None:
    student = random(0, (4, 6), (4, 6))
    with pytest.raises(ValueError, match="choose another"):
        apply(prepared(loss, student, student), student, student)


@pytest.mark.parametrize("loss", [FitNet(["a"]), VID(["a"]), ActivationBoundary(["a"])])
def test_other_losses_take_vectors(loss: TransferLoss) -> None:
    student, teacher = random(0, (4, 6)), random(1, (4, 3))
    value = apply(prepared(loss, student, teacher), outputs(*leaves(student)), teacher)
    value.backward()
    assert student.features["a"].grad is not None
    assert student.features["a"].grad.any()


def test_vid_is_the_log_density_of_a_gaussian() -> None:
    student, teacher = random(0, (4, 3, 2, 2)), random(1, (4, 5, 2, 2))
    loss = prepared(VID(["a"]), student, teacher)
    one: Any = loss.variational[0]
    assert one.raw_variance.shape == (5, 1)
    torch.nn.init.uniform_(one.raw_variance, -2, 2)
    deviation = torch.nn.functional.softplus(one.raw_variance).add(1e-5).sqrt()
    mean = one.mean(places(student.features["a"]))
    density = torch.distributions.Normal(mean, deviation).log_prob(places(teacher.features["a"]))
    expected = -density.mean() - math.log(2 * math.pi) / 2
    torch.testing.assert_close(apply(loss, student, teacher), expected)


@pytest.mark.parametrize("variance", [2e-5, 5.0, 1e4])
def test_vids_variance_starts_where_it_is_told_to(variance: float) -> None:
    student = random(0, (4, 3, 2, 2), dtype=torch.float32)
    one: Any = prepared(VID(["a"], variance), student, student).variational[0]
    found = torch.nn.functional.softplus(one.raw_variance) + 1e-5
    torch.testing.assert_close(found, torch.full((3, 1), variance), rtol=1e-4, atol=0)


def test_vids_variance_becomes_that_of_the_teacher() -> None:
    """Without information in the student's feature, σ² is each channel's own second moment."""
    spread = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)[:, None, None]
    student = outputs(torch.zeros(64, 2, 4, 4, dtype=torch.float64))
    teacher = outputs(spread * random(1, (64, 3, 4, 4)).features["a"])
    loss = prepared(VID(["a"]), student, teacher)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        apply(loss, student, teacher).backward()
        optimizer.step()
    one: Any = loss.variational[0]
    found = torch.nn.functional.softplus(one.raw_variance).flatten()
    torch.testing.assert_close(
        found, teacher.features["a"].square().mean((0, 2, 3)), rtol=1e-3, atol=0
    )


def test_variances_must_be_positive() -> None:
    with pytest.raises(ValueError, match="variance must be above"):
        VID(variance=0)
