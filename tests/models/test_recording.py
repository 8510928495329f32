"""BatchNorm layers that run twice or never, taps that do, and the statistics themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from core.objective import Objective, Weighted
from data.spec import InputSpec
from generators.losses import BatchNormStatistics
from generators.observer import unread_statistics
from models.check import check_network
from models.classifier import Classifier
from models.recording import mean_and_variance

SPEC = InputSpec((1, 8, 8), mean=(0.3,), std=(0.4,))


class Net(nn.Module):
    """``norm`` runs twice, ``auxiliary`` in training alone, ``never`` not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.auxiliary, self.never = (nn.BatchNorm2d(4) for _ in range(3))
        self.first, self.head = nn.BatchNorm2d(1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(self.a(x)).relu()
        if self.training:
            self.auxiliary(y)
        return self.head((y + self.norm(5 * self.b(x))).relu().mean((2, 3)))


def test_a_layer_that_runs_twice_has_one_entry_which_real_inputs_fit() -> None:
    classifier, x = Classifier(Net(), SPEC), SPEC.noise(64, torch.device("cpu"))
    for _ in range(200):
        classifier.train()(x)
    view = classifier.frozen(statistics=True)
    assert view.idle == ("auxiliary", "never")
    first, norm = view(x).statistics
    assert first.running_mean is view.module.first.running_mean  # type: ignore[union-attr]
    for found, known in [
        (norm.mean, norm.running_mean),
        (norm.variance, norm.running_variance),
    ]:
        assert float((found - known).norm() / known.norm()) < 0.15


def test_statistics_that_eval_mode_skips_are_left_out_with_a_line() -> None:
    objective = Objective({"bn": Weighted(BatchNormStatistics())})
    [line] = unread_statistics(Classifier(Net(), SPEC), objective)
    assert line == "synthesis: eval mode does not run the teacher's auxiliary, never: left out"

    class Training(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else x.flatten(1)[:, :5]

    unused = Classifier(Training(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 5)), SPEC)
    with pytest.raises(ValueError, match="Training runs no BatchNorm layer in eval mode"):
        unread_statistics(unused, objective)


@pytest.mark.parametrize(
    ("tap", "message"),
    [("norm", "'norm' of Net runs 2 times in eval"), ("never", "'never' of Net does not run in")],
)
def test_a_tap_runs_once(tap: str, message: str) -> None:
    for build in (
        lambda: Classifier(Net(), SPEC).frozen([tap]),
        lambda: check_network(Classifier(Net(), SPEC, taps=[tap]), 5),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_a_copy_has_hooks_of_its_own() -> None:
    classifier, x = Classifier(Net(), SPEC, taps=["a"], statistics=True), torch.rand(2, 1, 8, 8)
    twin = copy.deepcopy(classifier)
    assert [*twin(x).features] == ["a"]
    assert not classifier.record.features
    assert [*classifier(x).features] == ["a"]


def noise(*shape: int, mean: float = 0.0) -> Tensor:
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draw + mean


INPUTS = {
    "vectors": lambda: noise(5, 3),
    "one vector": lambda: noise(1, 3),
    "signals": lambda: noise(5, 3, 7),
    "maps": lambda: noise(5, 3, 4, 6),
    "maps, channels last": lambda: noise(5, 3, 4, 6).to(memory_format=torch.channels_last),
    "every other row": lambda: noise(5, 3, 4, 6)[:, :, ::2],
    "one channel": lambda: noise(5, 1, 4, 6),
    "volumes": lambda: noise(5, 3, 2, 3, 4),
    "volumes, channels last": lambda: noise(5, 3, 2, 3, 4).to(memory_format=torch.channels_last_3d),
}


def of_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return mean, variance


def gradient(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of a weighted sum of both: other weights for each channel."""
    weights = torch.linspace(0.5, 2.0, len(mean), dtype=mean.dtype)
    [found] = torch.autograd.grad((weights * mean + weights.flip(0).square() * variance).sum(), x)
    return found


@pytest.mark.parametrize("kind", INPUTS)
def test_mean_and_variance_in_every_rank_and_layout(kind: str) -> None:
    x = INPUTS[kind]().requires_grad_()
    before, found = x.detach().clone(), mean_and_variance(x)
    for value, expected in zip(found, of_torch(x), strict=True):
        torch.testing.assert_close(value, expected)
    by_hand = gradient(x, *found)
    torch.testing.assert_close(by_hand, gradient(x, *of_torch(x)))
    assert by_hand.stride() == x.stride() or not x.is_contiguous()
    for layout in (torch.channels_last, torch.channels_last_3d):
        if x.dim() == (4 if layout is torch.channels_last else 5):
            kept = x.is_contiguous(memory_format=layout)
            assert by_hand.is_contiguous(memory_format=layout) == kept
    assert torch.equal(x, before)
    assert torch.autograd.gradcheck(mean_and_variance, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["vectors", "signals", "maps", "maps, channels last", "volumes"])
def test_mean_and_variance_are_float32_of_what_is_less(kind: str, dtype: torch.dtype) -> None:
    x = INPUTS[kind]().to(dtype).requires_grad_()
    exact, before = x.detach().double().requires_grad_(), x.detach().clone()
    found = mean_and_variance(x)
    for value, expected in zip(found, of_torch(exact), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    by_hand = gradient(x, *found)
    assert by_hand.dtype == dtype
    one_rounding = torch.finfo(dtype).eps
    expected = gradient(exact, *of_torch(exact))
    torch.testing.assert_close(by_hand.double(), expected, rtol=one_rounding, atol=1e-7)
    assert torch.equal(x, before)


def test_a_variance_far_from_zero_does_not_cancel() -> None:
    """As in an untrained layer, whose running mean says nothing."""
    x = noise(64, 3, 8, 8, mean=1000.0).float().requires_grad_()
    exact = x.detach().double().requires_grad_()
    found, expected = mean_and_variance(x), of_torch(exact)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-6, atol=0)
    slopes = gradient(x, *found).double(), gradient(exact, *expected)
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-4 * float(slopes[1].abs().max()))
    assert (mean_and_variance(torch.full((64, 3, 9, 9), 1e4 / 3))[1] >= 0).all()


def test_statistics_are_differentiated_once() -> None:
    x = noise(5, 3).requires_grad_()
    [slope] = torch.autograd.grad(mean_and_variance(x)[1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_statistics_leave_the_input_as_it_is(dtype: torch.dtype) -> None:
    torch.compiler.reset()
    compiled = torch.compile(mean_and_variance, backend="aot_eager", fullgraph=True)
    x = INPUTS["maps, channels last"]().to(dtype).requires_grad_()
    before, found, plain = x.detach().clone(), compiled(x), mean_and_variance(x)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradient(x, *found), gradient(x, *plain))
    assert torch.equal(x, before)
