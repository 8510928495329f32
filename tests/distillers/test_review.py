"""ReviewKD: the loss by hand, the order of fusion, and features of any shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.spec import Batch
from distillers.base import Side
from distillers.review import ReviewKD, hierarchical_context_loss
from models.classifier import Outputs

SHAPES = {"stage1": (2, 6, 8, 8), "stage2": (2, 10, 4, 4), "pooled": (2, 10)}
LARGER = {"stage1": (2, 8, 16, 16), "stage2": (2, 12, 4, 4), "pooled": (2, 12)}
TOKENS = {"stage1": (2, 17, 8), "stage2": (2, 17, 8), "pooled": (2, 8)}


def outputs(shapes: dict[str, tuple[int, ...]], seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    features = {k: torch.randn(shape, generator=generator) for k, shape in shapes.items()}
    return Outputs(torch.zeros(2, 4), {k: x.requires_grad_() for k, x in features.items()})


def batch() -> Batch:
    return Batch(torch.zeros(2, 1), torch.zeros(2, 1))


def make(student: Outputs, teacher: Outputs) -> ReviewKD:
    loss = ReviewKD(["stage1", "stage2", "pooled"])
    loss.prepare(Side(student), Side(teacher))
    return loss


def test_loss_by_hand() -> None:
    s, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)

    def at(side: int) -> Tensor:
        a, b = (F.adaptive_avg_pool2d(x, side) for x in (s, t))
        return (a - b).square().mean()

    expected = (at(8) + at(4) / 2 + at(2) / 4 + at(1) / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    torch.testing.assert_close(hierarchical_context_loss([s], [t]), expected)
    small = [F.adaptive_avg_pool2d(x, 2) for x in (s, t)]
    expected_small = (at(2) + at(1) / 2) / 1.5
    torch.testing.assert_close(hierarchical_context_loss(*([x] for x in small)), expected_small)
    both = hierarchical_context_loss([s, small[0]], [t, small[1]])
    torch.testing.assert_close(both, expected + expected_small)
    assert hierarchical_context_loss([s], [s]) == 0


def test_the_levels_of_a_line() -> None:
    """Features of signals and texts have one row."""
    s, t = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 1, 8)

    def at(length: int) -> Tensor:
        a, b = (F.adaptive_avg_pool1d(x[:, :, 0], length) for x in (s, t))
        return (a - b).square().mean()

    expected = (at(8) + at(4) / 2 + at(2) / 4 + at(1) / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    torch.testing.assert_close(hierarchical_context_loss([s], [t]), expected)


@pytest.mark.parametrize("shapes", [SHAPES, LARGER, TOKENS])
def test_features_of_any_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    student, teacher = outputs(SHAPES, 0), outputs(shapes, 1)
    loss = make(student, teacher)
    value = loss(student, teacher, batch())
    value.backward()
    assert value.isfinite()
    assert all(x.grad is not None and x.grad.any() for x in student.features.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


def test_deeper_stages_reach_shallower_ones_and_not_the_reverse() -> None:
    student, teacher = outputs(SHAPES, 0), outputs(SHAPES, 1)
    loss = make(student, teacher)
    seen: list[Tensor] = []
    for fusion in loss.fusions:
        fusion.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    loss(student, teacher, batch())
    pooled, second, first = seen
    for made, reached in ((pooled, 1), (second, 2), (first, 3)):
        found = torch.autograd.grad(
            made.square().sum(), [*student.features.values()], retain_graph=True, allow_unused=True
        )
        assert sum(g is not None for g in found) == reached


def test_fusion_by_hand() -> None:
    """x·z₀ + up(y)·z₁ with z = σ(conv([x, up(y)])), then the 3×3 convolution."""
    student, teacher = outputs(SHAPES, 0), outputs(SHAPES, 1)
    fusion = make(student, teacher).fusions[0].eval()
    deeper = torch.randn(2, 10, 4, 4)
    made, passed = fusion(student.features["stage1"], deeper)
    x = fusion.inward(student.features["stage1"])
    y = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    weight, bias = fusion.attention.weight[:, :, 0, 0], fusion.attention.bias
    z = torch.einsum("oc,bchw->bohw", weight, torch.cat([x, y], 1)) + bias.view(1, 2, 1, 1)
    expected = x * z[:, :1].sigmoid() + y * z[:, 1:].sigmoid()
    torch.testing.assert_close(passed, expected)
    torch.testing.assert_close(made, fusion.outward(expected))
