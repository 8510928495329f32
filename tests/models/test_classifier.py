"""Taps, BatchNorm statistics and frozen views, plain and compiled."""

import pytest
import torch
from torch import Tensor, nn

from data.spec import InputSpec
from models.classifier import Classifier
from models.digits import DigitsCNN

SPEC = InputSpec((1, 8, 8), mean=(0.3,), std=(0.4,))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return DigitsCNN(1, 10, width=4)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0].mean(1)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert [*after] == [*before]
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_inputs_are_normalised_once(module: nn.Module, x: Tensor) -> None:
    expected = module.eval()((x - 0.3) / 0.4)
    torch.testing.assert_close(Classifier(module, SPEC)(x).logits, expected)


def test_no_taps_no_hooks(module: nn.Module, x: Tensor) -> None:
    classifier = Classifier(module, SPEC)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    outputs = classifier(x)
    assert not outputs.features
    assert not outputs.statistics


def test_unknown_tap_lists_the_known(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'stage9' in DigitsCNN.*stage1, stage2, pooled"):
        Classifier(module, SPEC, taps=["stage9"])


def test_module_path_is_a_tap(module: nn.Module, x: Tensor) -> None:
    features = Classifier(module.eval(), SPEC, taps=["stage1.0"])(x).features
    torch.testing.assert_close(features["stage1.0"], module.stage1[0](SPEC.normalize(x)))


def test_a_tap_on_what_is_no_tensor_says_so() -> None:
    attention = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 8)), SelfAttention())
    with pytest.raises(ValueError, match=r"the tap '2\.attention' gives a tuple, not one tensor"):
        Classifier(attention, SPEC, taps=["2.attention"])(torch.rand(2, 1, 8, 8))


def test_outputs_are_float32_in_autocast(module: nn.Module, x: Tensor) -> None:
    classifier = Classifier(module, SPEC, taps=["stage1"], statistics=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = classifier(x)
    assert outputs.logits.dtype == outputs.features["stage1"].dtype == torch.float32
    assert all(s.mean.dtype == torch.float32 for s in outputs.statistics)


def direct_statistics(module: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and biased variance of each BatchNorm layer's input, layer by layer, without hooks."""
    found = []
    for layer in (*module.stage1, *module.stage2):
        if isinstance(layer, nn.BatchNorm2d):
            found.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
        x = layer(x)
    return found


@pytest.mark.parametrize("compiled", [False, True])
def test_statistics_equal_direct_computation(module: nn.Module, x: Tensor, compiled: bool) -> None:
    classifier = Classifier(module.eval(), SPEC, taps=["pooled"], statistics=True)
    expected = direct_statistics(module, SPEC.normalize(x))
    keys = [*classifier.state_dict()]
    if compiled:
        torch.compiler.reset()
        classifier.module.compile(backend="eager")
    for _ in range(2):  # the second call must not find what the first left
        outputs = classifier(x)
        assert len(outputs.statistics) == len(expected) == 4
        for statistics, (mean, variance) in zip(outputs.statistics, expected, strict=True):
            torch.testing.assert_close(statistics.mean, mean)
            torch.testing.assert_close(statistics.variance, variance)
    assert [*classifier.state_dict()] == keys
    layer = module.stage1[1]
    assert outputs.statistics[0].running_mean is layer.running_mean
    assert outputs.statistics[0].running_variance is layer.running_var


def test_compiled_features_follow_the_input_and_carry_gradient(
    module: nn.Module, x: Tensor
) -> None:
    torch.compiler.reset()
    plain = Classifier(module.eval(), SPEC).frozen(["stage1"])
    classifier = Classifier(module, SPEC, taps=["stage1"])
    classifier.module.compile(backend="aot_eager")
    for batch in (x, 1 - x):
        batch = batch.clone().requires_grad_()
        feature = classifier(batch).features["stage1"]
        torch.testing.assert_close(feature, plain(batch).features["stage1"])
        (gradient,) = torch.autograd.grad(feature.square().sum(), batch)
        assert gradient.any()


def test_view_shares_storage(module: nn.Module, x: Tensor) -> None:
    student = Classifier(module, SPEC)
    view = student.frozen()
    for a, b in zip(module.state_dict().values(), view.module.state_dict().values(), strict=True):
        assert a.data_ptr() == b.data_ptr()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    student(x).logits.square().sum().backward()
    optimizer.step()  # also BatchNorm moved, in training mode
    torch.testing.assert_close(view(x).logits, student.eval()(x).logits)


def test_use_of_a_view_leaves_the_student_alone(module: nn.Module, x: Tensor) -> None:
    student = Classifier(module, SPEC).train()
    student(x).logits.sum().backward()
    gradients = [p.grad.clone() for p in student.parameters()]
    before = snapshot(student)
    images = x.clone().requires_grad_()
    view = student.frozen(["stage1"], statistics=True)
    outputs = view(images)
    (outputs.logits.sum() + outputs.features["stage1"].sum()).backward()
    assert images.grad.any()
    assert_unchanged(student, before)
    for parameter, gradient in zip(student.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradient)
    assert not any(p.requires_grad or p.grad is not None for p in view.parameters())
    assert all(m.training for m in student.modules())
    assert not any(m.training for m in view.modules())


def test_a_view_by_batch_sees_what_train_mode_does_and_changes_nothing(
    module: nn.Module, x: Tensor
) -> None:
    student = Classifier(module, SPEC)
    view = student.frozen(["stage1"], by_batch=True)
    before = snapshot(student)
    outputs = view(x)
    assert not torch.allclose(outputs.logits, student.eval()(x).logits)
    assert_unchanged(student, before)
    assert not view.batchnorms()
    assert len(student.batchnorms()) == 4
    torch.testing.assert_close(outputs.logits, student.train()(x).logits)


def test_hooks_of_view_and_original_are_apart(module: nn.Module, x: Tensor) -> None:
    student = Classifier(module, SPEC, taps=["stage2"])
    view = student.frozen(["stage1"], statistics=True)
    assert [*student(x).features] == ["stage2"]
    assert not student(x).statistics
    assert [*view(x).features] == ["stage1"]
    assert not student.record.features
    view_of_view = view.frozen()
    assert not view_of_view(x).features
    modules = [*view_of_view.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert len(view(x).statistics) == 4


def test_view_of_a_compiled_network(module: nn.Module, x: Tensor) -> None:
    torch.compiler.reset()
    student = Classifier(module, SPEC, taps=["stage2"], statistics=True).eval()
    student.module.compile(backend="eager")
    student(x)
    view = student.frozen(["stage1"])
    assert [*view(x).features] == ["stage1"]
    torch.testing.assert_close(view(x).logits, student(x).logits)


def test_float64_stays(module: nn.Module, x: Tensor) -> None:
    outputs = Classifier(module.double(), SPEC, taps=["stage1"])(x.double())
    assert outputs.logits.dtype == outputs.features["stage1"].dtype == torch.float64
