"""Generator networks: shapes, ranges, classes, and the upsampling convolution by definition."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from data.spec import InputSpec
from generators.bodies import ClassBatchNorm, UpsampledConv2d
from generators.networks import OUTPUTS, StandardGenerator
from models.initialization import reinitialize


def spec(*shape: int, low: float = -1.0, high: float = 3.0) -> InputSpec:
    channels = shape[0]
    return InputSpec(shape, (low, high), (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (5, 64, 64), (2, 4, 12)])
@pytest.mark.parametrize("output", OUTPUTS)
def test_shape_and_range(shape: tuple[int, ...], output: str) -> None:
    torch.manual_seed(0)
    net = StandardGenerator(spec(*shape), 10, latent_size=7, channels=8, output=output)
    x = net(100 * torch.randn(3, 7))
    assert x.shape == (3, *shape)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    if output == "sigmoid":
        assert x.min() >= -1
        assert x.max() <= 3
        assert x.max() > 1.5  # not the range of [0, 1]


@pytest.mark.parametrize("output", ["tanh_bn", "bn"])
def test_batchnorm_output_is_what_the_classifier_sees(output: str) -> None:
    images = spec(3, 8, 8)
    net = StandardGenerator(images, 10, output=output, channels=8)
    seen = images.normalize(net(torch.randn(64, 100)))
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-2, rtol=0)


def test_a_last_tanh_bounds_what_the_classifier_sees() -> None:
    images = spec(3, 8, 8)
    options: dict[str, Any] = {"channels": 8}
    torch.manual_seed(0)
    bounded = StandardGenerator(images, 10, output="bn_tanh", **options)
    torch.manual_seed(0)
    net = StandardGenerator(images, 10, output="bn", **options)
    z = torch.randn(64, 100)
    seen = images.normalize(bounded(z))
    assert 0.9 < seen.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(seen, images.normalize(net(z)).tanh(), atol=1e-5, rtol=0)


def test_only_zskt_learns_the_scale_of_its_last_batchnorm() -> None:
    names = {
        output: dict(StandardGenerator(spec(1, 8, 8), 10, output=output).named_parameters())
        for output in ("tanh_bn", "bn_tanh", "bn")
    }
    assert "last_norm.weight" in names["bn"]
    assert "last_norm.weight" not in names["tanh_bn"]
    assert "last_norm.weight" not in names["bn_tanh"]


def test_standard_widths() -> None:
    shapes = {
        tuple(p.shape)
        for p in StandardGenerator(spec(3, 32, 32), 10).parameters()
        if p.dim() in (2, 4)
    }
    assert shapes == {(128 * 64, 100), (128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)}


def test_upsampled_convolution_is_upsampling_then_convolution() -> None:
    torch.manual_seed(0)
    conv = UpsampledConv2d(3, 5).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), conv.weight, padding=1)
    torch.testing.assert_close(conv(x), expected)


def test_conditional_generator_uses_the_class() -> None:
    net = StandardGenerator(spec(1, 8, 8), 3, channels=8, conditional=True).eval()
    z = torch.randn(1, 100).expand(3, 100)
    x = net(z, torch.tensor([0, 1, 1]))
    assert not torch.equal(x[0], x[1])
    torch.testing.assert_close(x[1], x[2])
    with pytest.raises(AssertionError, match="needs the classes"):
        net(z)


def test_norms_by_class_scale_and_shift_what_the_batch_normalised() -> None:
    torch.manual_seed(0)
    net = ClassBatchNorm(2, 4, 3).double()
    torch.nn.init.normal_(net.scale)
    torch.nn.init.normal_(net.shift)
    x, y = torch.randn(6, 4, 2, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 0, 1])
    made = net(x, y)
    mean, std = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + 1e-5).sqrt()
    for i in range(6):
        for c in range(4):
            expected = net.scale[y[i], c] * (x[i, c] - mean[c]) / std[c] + net.shift[y[i], c]
            torch.testing.assert_close(made[i, c], expected)


def test_a_norm_by_class_is_drawn_anew_with_its_network() -> None:
    net = torch.nn.Sequential(ClassBatchNorm(2, 4, 3))
    with torch.no_grad():
        net[0].scale.zero_()
        net[0].shift.fill_(2.0)
    reinitialize(net, torch.Generator())
    assert torch.equal(net[0].scale, torch.ones(3, 4))
    assert torch.equal(net[0].shift, torch.zeros(3, 4))


@pytest.mark.parametrize("output", ["sigmoid", "tanh_bn", "bn_tanh", "bn"])
def test_a_class_reaches_the_image_through_every_norm(output: str) -> None:
    images, z = spec(1, 8, 8), torch.randn(4, 100)
    options = {"channels": 8, "output": output, "conditional": True, "conditioning": "norm"}
    torch.manual_seed(0)
    net = StandardGenerator(images, 3, **options)
    torch.manual_seed(0)
    plain = StandardGenerator(images, 3, channels=8, output=output)
    y = torch.tensor([0, 1, 2, 1])
    torch.testing.assert_close(net(z, y), plain(z))  # at the start all classes are alike
    assert torch.equal(net.latent(z, y), z)
    norms = [m for m in net.modules() if isinstance(m, ClassBatchNorm)]
    assert len(norms) == (3 if output == "sigmoid" else 4)
    for norm in norms:
        before = net(z, y)
        with torch.no_grad():
            norm.shift[2] += torch.linspace(-1, 1, norm.shift.shape[1]) + 0.5
        assert not torch.allclose(net(z, y)[2], before[2])
    with torch.autocast("cpu", torch.bfloat16):
        assert net(z, y).dtype == torch.float32
    with pytest.raises(AssertionError, match="needs the classes"):
        net(z)


def test_unconditional_generator_ignores_the_class() -> None:
    net = StandardGenerator(spec(1, 8, 8), 3, channels=8).eval()
    z = torch.randn(2, 100)
    assert torch.equal(net(z), net(z, torch.tensor([0, 1])))


def test_images_are_channels_last() -> None:
    x = StandardGenerator(spec(3, 8, 8), 3, channels=8)(torch.randn(2, 100))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_bf16_gives_float32_images() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        x = StandardGenerator(spec(3, 8, 8), 3, channels=8)(torch.randn(2, 100))
    assert x.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 30, 32), {}, "divisible by 4"),
        ((1, 32, 31), {}, "divisible by 4"),
        ((1, 8, 8), {"output": "relu"}, "'relu' is none of: sigmoid, scaled, tanh_bn, bn"),
        ((1, 8, 8), {"channels": 7}, "even, not 7"),
    ],
)
def test_what_it_cannot_make(shape: tuple[int, ...], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StandardGenerator(spec(*shape), 10, **options)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 64), (2,)])
def test_a_scaled_output_begins_with_the_mean_and_std_that_the_teacher_expects(
    shape: tuple[int, ...],
) -> None:
    expects = InputSpec(shape, (-1.0, 3.0), (0.5, 2.0), (0.25, 0.02))
    net = StandardGenerator(expects, 10, channels=8, output="scaled")
    ones = (1, -1) + (1,) * (len(shape) - 1)
    means, stds = torch.tensor(expects.mean).view(ones), torch.tensor(expects.std).view(ones)
    given = 0.0
    net.stages[-1].register_forward_hook(lambda layer, args, h: torch.full_like(h, given))
    torch.testing.assert_close(net(torch.randn(5, 100)), means.expand(5, *shape))
    given = 1e-2
    moved = (net(torch.randn(5, 100)) - means) / given
    torch.testing.assert_close(moved, stds.expand(5, *shape), rtol=0.02, atol=0)
    assert set(net.state_dict()) == set(StandardGenerator(expects, 10, channels=8).state_dict())
