"""Generators of signals and vectors: shapes, ranges, and upsampling with a convolution in one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from data.spec import InputSpec
from generators.bodies import SignalBody, UpsampledConv1d
from generators.networks import OUTPUTS, GeneratorEnsemble, StandardGenerator
from tests.generators.test_networks import spec

SHAPES = [(1, 64), (1, 512), (3, 96), (1, 4096), (1, 8000), (13,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_shape_and_range(shape: tuple[int, ...], output: str) -> None:
    torch.manual_seed(0)
    net = StandardGenerator(spec(*shape), 10, latent_size=7, channels=8, output=output)
    x = net(100 * torch.randn(5, 7))
    assert x.shape == (5, *shape)
    assert x.isfinite().all()
    if output == "sigmoid":
        assert x.min() >= -1
        assert 1.2 < x.max() <= 3  # not the range of [0, 1]
    if output == "tanh_bn":
        seen = net.spec.normalize(x)
        axes = [0, *range(2, x.dim())]
        torch.testing.assert_close(seen.mean(axes), torch.zeros(shape[0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(2, 96), (13,)])
@pytest.mark.parametrize("conditioning", ["concat", "add", "norm"])
def test_classes_make_a_difference(shape: tuple[int, ...], conditioning: str) -> None:
    torch.manual_seed(0)
    options = {"channels": 8, "conditional": True, "conditioning": conditioning}
    net = StandardGenerator(spec(*shape), 3, **options).eval()  # type: ignore[arg-type]
    if conditioning == "norm":
        for name, p in net.named_parameters():
            if name.endswith("shift"):
                torch.nn.init.normal_(p)
    z = torch.randn(1, 100).expand(3, -1)
    x = net(z, torch.arange(3))
    assert not torch.allclose(x[0], x[1])
    assert not torch.allclose(x[1], x[2])


def test_an_ensemble_of_signals() -> None:
    net = GeneratorEnsemble(spec(1, 64), 4, members=2, latent_size=5, channels=8)
    assert net(torch.randn(5, 5)).shape == (5, 1, 64)


@pytest.mark.parametrize("kernel", [1, 3, 9, 25])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_upsampling_and_convolution_in_one(kernel: int, factor: int) -> None:
    conv = UpsampledConv1d(3, 5, kernel, factor).double()
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    upsampled = F.interpolate(x, scale_factor=factor, mode="nearest")
    expected = F.conv1d(upsampled, conv.weight, padding=kernel // 2)
    found = conv(x)
    torch.testing.assert_close(found, expected)
    seed = torch.randn_like(expected)
    for p in (x, conv.weight):
        gradients = (torch.autograd.grad(y, p, seed, retain_graph=True) for y in (found, expected))
        torch.testing.assert_close(*gradients)


def test_steps_lead_to_any_length_that_they_reach() -> None:
    factors = {n: SignalBody().factors(InputSpec((1, n))) for n in (16, 32, 96, 4096, 8000)}
    assert factors == {
        16: [4],
        32: [4, 2],
        96: [4, 4],
        4096: [4, 4, 4, 4, 4],
        8000: [4, 4, 4],
    }
