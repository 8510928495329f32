"""Attacks reach the optimum where it is known, stay in ball and range, and leave no trace."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.attacks import PGD, pgd
from distillers.distiller import Distiller
from distillers.response import KD, CrossEntropy
from distillers.step import Edge, Ref, Roles, Step
from distillers.teachers import Average
from models.classifier import Classifier
from models.meter import Meter
from tests.distillers.small import SPEC, Network, make, make_batch, make_teacher, objective_of

WIDE = InputSpec((1, 4, 4), (-2.0, 6.0))
LABEL = torch.arange(6) % 4


def linear_loss(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Cross-entropy of a classifier of two classes with score w·x for the wrong one."""
    return lambda x: F.softplus((x.flatten(1) * weight).sum(1)).sum()


def inputs(spec: InputSpec, seed: int = 0) -> Tensor:
    low, high = spec.range
    return low + (high - low) * torch.rand(5, *spec.shape, generator=generator(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_optimum_of_a_linear_classifier_in_the_maximum_norm() -> None:
    weight, x = torch.randn(16, generator=generator(1)), inputs(WIDE)
    found = pgd(linear_loss(weight), x, WIDE, 0.1, 0.025, 10, "inf", "uniform", generator())
    optimum = (x + 0.8 * weight.sign().view(1, 1, 4, 4)).clamp(-2, 6)  # 0.1 of the width of 8
    torch.testing.assert_close(found, optimum)
    assert not found.requires_grad


def test_the_optimum_of_a_linear_classifier_in_the_euclidean_norm() -> None:
    weight, x = torch.randn(16, generator=generator(1)), torch.full((5, 1, 4, 4), 2.0)
    found = pgd(linear_loss(weight), x, WIDE, 0.2, 0.1, 60, "2", "uniform", generator())
    optimum = x + 1.6 * (weight / weight.norm()).view(1, 1, 4, 4)
    torch.testing.assert_close(found, optimum, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("norm", "start"), [*itertools.product(["inf", "2"], ["uniform", "normal", "none"])]
)
def test_the_result_stays_in_ball_and_range(norm: Any, start: Any) -> None:
    x = inputs(WIDE).round()  # some lie on the range's edges
    weight = torch.randn(16, generator=generator(1))
    for steps in (0, 1, 7):
        found = pgd(linear_loss(weight), x, WIDE, 0.05, 0.2, steps, norm, start, generator())
        moved = (found - x).flatten(1)
        size = moved.abs().amax(1) if norm == "inf" else moved.norm(dim=1)
        assert (size <= 0.4 * (1 + 1e-5)).all()
        assert found.min() >= -2
        assert found.max() <= 6
        if steps:
            assert (size > 0.2).all()  # it does go somewhere
        elif start == "none":
            assert torch.equal(found, x)
        elif start == "normal":
            assert 0.001 < moved.std() < 0.016  # 0.001 of the width; less where it is cut off


def test_the_uniform_start_fills_the_ball() -> None:
    x = torch.full((4000, 1, 4, 4), 2.0)
    for norm in ("inf", "2"):
        found = pgd(torch.sum, x, WIDE, 0.1, 0.1, 0, norm, "uniform", generator())  # type: ignore[arg-type]
        moved = (found - x).flatten(1) / 0.8
        size = moved.abs().amax(1) if norm == "inf" else moved.norm(dim=1)
        share = size.pow(16).sort().values  # of the ball's volume: uniform in [0, 1]
        torch.testing.assert_close(share, torch.linspace(0, 1, 4000), atol=0.04, rtol=0)
        assert moved.mean().abs() < 0.01


def attacking(teacher: Classifier | None = None, bf16: bool = False, **settings: Any) -> Distiller:
    view = PGD(SPEC, epsilon=0.2, **settings)
    target = Ref("teacher" if teacher else "student")
    loss = KD() if teacher else CrossEntropy()
    edges = {"loss": Edge(Ref("student", "attacked"), target)}
    runtime = Runtime("cpu", "bf16" if bf16 else "fp32")
    return make(objective_of(loss=loss), teacher, runtime, edges, attacked=view)


def attacked(distiller: Distiller, number: int = 0) -> Tensor:
    return Step(distiller.roles, make_batch(LABEL), number).view("attacked")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_attack_changes_nothing_of_the_student(mode: str) -> None:
    distiller = attacking(mode=mode).train()
    student = distiller.student
    student(make_batch().input)  # statistics of its own
    student.module.stage1.eval()  # type: ignore[union-attr, operator]
    before = copy.deepcopy(student.state_dict())
    modes = [m.training for m in distiller.modules()]
    names = set(distiller.state_dict())
    random = torch.get_rng_state()
    x = attacked(distiller)
    assert not torch.equal(x, make_batch().input)
    for key, value in student.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert [m.training for m in distiller.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in student.parameters())
    assert set(distiller.state_dict()) == names
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_attack_is_that_of_a_loop_over_a_copy_of_the_student(mode: str) -> None:
    distiller = attacking(mode=mode, start="none", iterations=4)
    distiller.student(make_batch().input)
    network = copy.deepcopy(distiller.student).train(mode == "train")
    x = make_batch().input
    found = x.clone()
    for _ in range(4):
        found = found.detach().requires_grad_()
        F.cross_entropy(network(found).logits, LABEL).backward()
        assert found.grad is not None
        found = found.detach() + 2.5 * 0.2 / 4 * found.grad.sign()
        found = torch.min(torch.max(found, x - 0.2), x + 0.2).clamp(0, 1)
    torch.testing.assert_close(attacked(distiller), found)


def test_the_student_is_attacked_as_it_is_now() -> None:
    distiller = attacking()
    before = attacked(distiller)
    with torch.no_grad():
        distiller.student.module.head[1].weight.neg_()  # type: ignore[union-attr, index]
    assert not torch.allclose(attacked(distiller), before, atol=0.1)


def test_the_start_depends_on_the_step_alone() -> None:
    first = attacked(attacking(), number=3)
    torch.manual_seed(5)
    assert torch.equal(attacked(attacking(), number=3), first)
    assert not torch.equal(attacked(attacking(), number=4), first)


def divergence(target: Tensor, answer: Tensor) -> Tensor:
    p = target.softmax(1)
    return (p * (p.log() - answer.log_softmax(1))).sum()


@pytest.mark.parametrize("maximise", ["kl", "kl_both"])
def test_what_is_maximised(maximise: Any) -> None:
    """One step, against the gradient of the formula."""
    teacher = make_teacher().eval()
    distiller = attacking(teacher, maximise=maximise, iterations=2, step_size=0.01, start="normal")
    s = copy.deepcopy(distiller.student).eval()
    x, clean = make_batch().input, teacher(make_batch().input).logits.detach()
    noise = torch.empty_like(x).normal_(generator=distiller.runtime.noise("attack attacked", 0))
    found = (x + 0.001 * noise).clamp(0, 1)
    for _ in range(2):
        found = found.detach().requires_grad_()
        target = clean if maximise == "kl" else teacher(found).logits
        (g,) = torch.autograd.grad(divergence(target, s(found).logits), found)
        found = (found.detach() + 0.01 * g.sign()).clamp(0, 1)
    agree = (attacked(distiller) - found).abs() < 1e-6
    assert agree.float().mean() > 0.99  # a gradient of 0 up to rounding may have either sign


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_student_that_is_its_own_target(mode: str) -> None:
    """TRADES: the clean answer is made in the attack's mode, so that at x the KL is 0."""
    distiller = attacking(maximise="kl", target="student", mode=mode, start="none")
    view = distiller.roles.views["attacked"]
    loss = view._loss(Step(distiller.roles, make_batch(LABEL)))  # type: ignore[operator]
    assert loss(make_batch().input).abs() < 1e-5
    assert loss(attacked(distiller) + 0.1) > 1e-3


@pytest.mark.parametrize(("maximise", "asked"), [("ce", 6), ("kl", 12), ("kl_both", 6 + 18)])
def test_each_answer_of_the_teacher_is_a_query(maximise: Any, asked: int) -> None:
    """The loss reads the teacher at the attacked input, and the distiller asks it at the clean."""
    meter = Meter()
    view = PGD(SPEC, epsilon=0.2, iterations=3, maximise=maximise)
    edges = {"loss": Edge(Ref("student", "attacked"), Ref("teacher", "attacked"))}
    teacher = make_teacher().metered(meter)
    distiller = make(objective_of(loss=KD()), teacher, edges=edges, attacked=view)
    step = Step(distiller.roles, make_batch(LABEL))
    step.answer("teacher", "attacked")
    assert meter.queries == asked
    step.answer("teacher")
    assert meter.queries == (asked if maximise == "kl" else asked + 6)


def test_gradients_reach_the_student_under_autocast() -> None:
    """The attack leaves no weights cast without a graph to the pass that trains."""
    distiller = attacking(bf16=True, mode="train")
    x = attacked(distiller)
    distiller(make_batch(LABEL)).total.backward()
    found = [p.grad.clone() for p in distiller.student.parameters() if p.grad is not None]
    assert len(found) == len(list(distiller.student.parameters()))
    distiller.student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = distiller.student(x).logits
    F.cross_entropy(logits, LABEL).backward()
    for ours, p in zip(found, distiller.student.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad)


def test_an_attack_within_a_block_without_gradient() -> None:
    """As an average asks for a view."""
    distiller = attacking()
    with torch.no_grad():
        inside = attacked(distiller)
    assert torch.equal(inside, attacked(distiller))


def test_a_compiled_run_attacks_compiled_views(monkeypatch: pytest.MonkeyPatch) -> None:
    distiller, compiled = attacking(), []
    monkeypatch.setattr(Runtime, "compile", lambda self, module: compiled.append(module) or module)
    attacked(distiller)
    attacked(distiller, 1)
    assert [type(m) for m in compiled] == [Network]
    assert compiled[0] is not distiller.student.module


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"epsilon": 8}, "0.0314"),
        ({"epsilon": 0}, "above 0"),
        ({"epsilon": 0.1, "iterations": 0}, "at least 1"),
        ({"epsilon": 0.1, "step_size": -1}, "above 0"),
    ],
)
def test_settings_that_make_no_attack(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PGD(SPEC, **settings)


def test_what_is_no_network_cannot_be_attacked() -> None:
    student, runtime = Classifier(Network(4), SPEC), Runtime("cpu")
    view = PGD(SPEC, 0.1, of="average")
    roles = Roles({"student": student}, {}, {"average": Average()}, {"attacked": view}, runtime)
    with pytest.raises(ValueError, match="average: name a network"):
        Step(roles, Batch(make_batch().input, LABEL)).view("attacked")


def test_labels_are_needed_only_for_the_cross_entropy() -> None:
    assert PGD(SPEC, 0.1).needs_label
    assert PGD(SPEC, 0.1).of == ("student",)
    assert not PGD(SPEC, 0.1, maximise="kl").needs_label
    assert PGD(SPEC, 0.1, maximise="kl").of == ("student", "teacher")
    assert PGD(SPEC, 0.1, maximise="kl", target="student").of == ("student",)


def test_dropout_is_off_in_either_mode() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))
    student, runtime = Classifier(module, SPEC).train(), Runtime("cpu")
    view = PGD(SPEC, 0.1, start="none", mode="train")
    roles = Roles({"student": student}, {}, {}, {"attacked": view}, runtime)
    found = [Step(roles, make_batch(LABEL)).view("attacked") for _ in range(2)]
    assert torch.equal(*found)
