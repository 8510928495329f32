"""The black box: what it answers, what it hides and counts, and the gradients it estimates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.runtime import Runtime
from data.spec import InputSpec
from data.transforms import Channels
from models.black_box import (
    BlackBox,
    forward_differences,
    unit_directions,
    without_tf32,
)
from models.classifier import Classifier
from models.digits import DigitsCNN
from models.pretrained import freeze

SPEC = InputSpec((1, 4, 4), (-1.0, 3.0), (0.3,), (0.4,))


def teacher(gap: float = 1.0) -> Classifier:
    """Smooth, so that the true gradient is what small differences tend to."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(64, 5))
    network[-1].weight.data *= gap
    return freeze(Classifier(network, SPEC, "abcde"))


def box(runtime: Runtime | None = None, gap: float = 1.0, **kwargs: Any) -> BlackBox:
    return BlackBox(teacher(gap), runtime or Runtime("cpu"), **kwargs)


def inputs(count: int = 6) -> Tensor:
    return 4 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)) - 1


def true_logits(x: Tensor, gap: float = 1.0) -> Tensor:
    logits = teacher(gap)(x).logits
    return logits - logits.mean(dim=1, keepdim=True)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(black_box: BlackBox, x: Tensor, upstream: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    black_box(x).logits.backward(upstream)
    assert x.grad is not None
    return x.grad


def test_an_orthonormal_basis_gives_the_exact_gradient_of_a_linear_function() -> None:
    jacobian = torch.randn(3, 8, generator=noise(), dtype=torch.float64)
    x, v = (torch.randn(5, n, generator=noise(n), dtype=torch.float64) for n in (8, 3))
    basis = torch.linalg.qr(torch.randn(8, 8, generator=noise(1), dtype=torch.float64))[0]
    directions = [u.expand(5, 8) for u in basis]
    estimate = forward_differences(lambda y: y @ jacobian.T, x, x @ jacobian.T, v, directions, 0.1)
    torch.testing.assert_close(estimate, v @ jacobian)


@pytest.mark.parametrize("count", [1, 10])
def test_the_estimate_of_a_quadratic_is_unbiased(count: int) -> None:
    """Over 40,000 inputs that are one and the same; each draws directions of its own."""
    d, n = 6, 40_000
    half = torch.randn(d, d, generator=noise(), dtype=torch.float64)
    matrix, offset = half @ half.T, torch.randn(d, generator=noise(1), dtype=torch.float64)
    x = torch.randn(d, generator=noise(2), dtype=torch.float64)

    def f(y: Tensor) -> Tensor:
        return (0.5 * ((y @ matrix) * y).sum(1) + y @ offset)[:, None]

    true = matrix @ x + offset
    rows = x.expand(n, d)
    one = torch.ones(n, 1, dtype=torch.float64)
    directions = unit_directions(rows, count, noise(3))
    estimates = forward_differences(f, rows, f(rows), one, directions, 1e-5)
    error = (estimates.mean(0) - true).norm() / true.norm()
    spread = (estimates - true).norm(dim=1).square().mean().sqrt() / true.norm()
    # E‖ĝ − g‖² = (d − 1)/m · ‖g‖² for directions uniform on the sphere
    assert spread == pytest.approx(((d - 1) / count) ** 0.5, rel=0.05)
    assert error < 4 * spread / n**0.5


def test_directions_are_unit_vectors_of_their_own_for_each_input() -> None:
    x = torch.zeros(4, 2, 3, 3)
    first, second = unit_directions(x, 2, noise())
    for u in (first, second):
        torch.testing.assert_close(u.flatten(1).norm(dim=1), torch.ones(4))
    rows = torch.cat([first, second]).flatten(1)
    assert (rows @ rows.T - torch.eye(8)).abs().max() < 0.9


def test_backward_estimates_the_gradient_of_the_hidden_network() -> None:
    x = inputs()
    upstream = torch.randn(6, 5, generator=noise(2))
    known = x.clone().requires_grad_()
    true_logits(known).backward(upstream)
    assert known.grad is not None
    estimate = gradient(box(directions=3000), x, upstream)
    # (16 − 1)/3000 of the squared length is what 3,000 directions leave
    error = (estimate - known.grad).flatten(1).norm(dim=1) / known.grad.flatten(1).norm(dim=1)
    assert error.max() < 0.15


def test_answers_are_the_logits_but_for_their_mean() -> None:
    x = inputs()
    black_box = box()
    torch.testing.assert_close(black_box(x).logits, true_logits(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        black_box(x).logits.softmax(1), teacher()(x).logits.softmax(1), atol=1e-6, rtol=1e-5
    )
    outputs = black_box(x.requires_grad_())
    torch.testing.assert_close(outputs.logits, true_logits(x), atol=1e-5, rtol=1e-5)
    assert outputs.features == {}
    assert outputs.statistics == []


def test_answers_and_gradients_are_finite_where_probabilities_vanish() -> None:
    x = inputs()
    assert (true_logits(x, gap=10_000.0).abs().amax(1) > 500).all()
    black_box = box(gap=10_000.0)
    assert black_box(x).logits.isfinite().all()
    assert gradient(black_box, x, torch.ones(6, 5)).isfinite().all()


def test_answers_do_not_depend_on_autocast() -> None:
    x = inputs().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = box()(x)
    assert outputs.logits.dtype == torch.float32
    assert torch.equal(outputs.logits, box()(x).logits)


def test_weights_and_gradients_are_out_of_reach() -> None:
    black_box = box()
    x = inputs().requires_grad_()
    black_box(x).logits.sum().backward()
    assert list(black_box.parameters()) == []
    assert list(black_box.buffers()) == []
    assert not any(isinstance(v, Tensor) for v in black_box.state_dict().values())
    hidden = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Parameter, Tensor)
    for module in black_box.modules():
        assert not isinstance(module, hidden)
        assert not any(isinstance(v, hidden) for v in vars(module).values())
    assert black_box.parameter_count() == teacher().parameter_count()


def test_training_mode_does_not_reach_the_teacher() -> None:
    black_box, x = box(), inputs()
    before = black_box(x).logits
    black_box.train()
    assert torch.equal(black_box(x).logits, before)
    assert torch.equal(black_box(x).logits, before)


def test_every_query_is_counted_wherever_it_is_made() -> None:
    black_box = box(directions=3)
    view, x = black_box.frozen(), inputs()
    view(x)
    assert black_box.meter.queries == 6
    gradient(black_box, x, torch.ones(6, 5))
    assert black_box.meter.queries == 6 + 6 * black_box.queries_per_gradient == 6 + 6 * 4
    with torch.no_grad():
        view(x.requires_grad_())
    assert black_box.meter.queries == 36


def test_the_budget_is_not_exceeded() -> None:
    black_box, x = box(budget=20), inputs()
    asked = []
    answer = black_box.module.answer
    black_box.module.answer = lambda x: asked.append(len(x)) or answer(x)
    for _ in range(3):
        black_box(x)
    with pytest.raises(ValueError, match=r"at most 20 .* 18 were made, and 6 more"):
        black_box(x)
    assert asked == [6, 6, 6]
    black_box(x[:2])  # what is left can be spent
    assert black_box.meter.queries == 20


def test_processes_share_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime("cpu")
    monkeypatch.setattr(runtime, "world_size", 2)
    black_box = box(runtime, budget=20)
    black_box(inputs())
    with pytest.raises(ValueError, match="budget"):
        black_box(inputs())


@pytest.mark.parametrize(
    "ask",
    [
        lambda b: b.frozen(taps=["pooled"]),
        lambda b: b.frozen(taps=iter(["pooled"])),
        lambda b: b.frozen(statistics=True),
        lambda b: b.frozen(by_batch=True),
        lambda b: b.batchnorms(),
    ],
)
def test_what_is_inside_is_refused_with_methods_that_work(ask: Any) -> None:
    with pytest.raises(ValueError, match="dfme or maze"):
        ask(box())


def test_the_noise_follows_the_count_and_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    x, upstream = inputs(), torch.ones(6, 5).cumsum(1)
    first = box()
    one, two = (gradient(first, x, upstream) for _ in range(2))
    assert not torch.equal(one, two)
    again = box()
    again.meter.load_state_dict({"_extra_state": {"queries": 12}})
    torch.rand(7)  # the global generator has no say
    assert torch.equal(gradient(again, x, upstream), two)
    assert again.meter.queries == first.meter.queries == 24
    runtime = Runtime("cpu")
    monkeypatch.setattr(runtime, "rank", 1)
    assert not torch.equal(gradient(box(runtime), x, upstream), one)


def test_a_box_behind_a_transform_takes_what_goes_into_it() -> None:
    wide = InputSpec((1, 4, 4), (0.0, 2.0), (0.3,), (0.4,))
    half = Channels(wide, keep=[0])
    inside = Classifier(teacher().module, SPEC, "abcde", transform=half, takes=wide)
    boxed = BlackBox(freeze(inside), Runtime("cpu"), epsilon=0.01)
    assert boxed.takes == wide
    assert boxed.epsilon == pytest.approx(0.02)
    x = inputs().abs() / 2
    torch.testing.assert_close(
        boxed(x).logits.softmax(1), inside(x).logits.softmax(1), rtol=1e-4, atol=1e-6
    )


def test_a_compiled_box_answers_alike() -> None:
    x, upstream = inputs(), torch.ones(6, 5).cumsum(1)
    plain, compiled = box(), box()
    compiled.module.compile(backend="eager")
    assert torch.equal(gradient(compiled, x, upstream), gradient(plain, x, upstream))


def test_tf32_is_off_while_the_box_answers() -> None:
    def allowed() -> list[bool]:
        return [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]

    before = allowed()
    seen = []
    black_box = box()
    answer = black_box.module.answer
    black_box.module.answer = lambda x: seen.append(allowed()) or answer(x)
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        black_box(inputs())
        assert seen == [[False, False]]
        with pytest.raises(RuntimeError), without_tf32():
            raise RuntimeError
        assert allowed() == [True, True]
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("wrong", [{"directions": 0}, {"epsilon": 0.0}, {"budget": 0}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"teacher\.black_box needs"):
        box(**wrong)


def test_epsilon_is_a_share_of_the_range() -> None:
    seen: list[Tensor] = []
    black_box, x = box(epsilon=0.01), inputs(1)
    answer = black_box.module.answer
    black_box.module.answer = lambda x: seen.append(x) or answer(x)
    gradient(black_box, x, torch.ones(1, 5))
    assert (seen[1] - seen[0]).detach().norm() == pytest.approx(0.04, rel=1e-3)


def test_a_network_of_the_field_fits() -> None:
    spec = InputSpec((1, 8, 8))
    black_box = BlackBox(freeze(Classifier(DigitsCNN(1, 10, width=4), spec)), Runtime("cpu"))
    assert black_box(torch.rand(3, 1, 8, 8)).logits.shape == (3, 10)
