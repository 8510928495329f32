"""Generators of signals, vectors and texts: shapes, ranges, and classes."""

from __future__ import annotations

import pytest
import torch

from data.spec import InputSpec
from generators.networks import OUTPUTS, GeneratorEnsemble, StandardGenerator
from tests.generators.test_networks import spec

SHAPES = [(1, 64), (1, 512), (3, 96), (1, 4096), (1, 8000), (2, 101), (1, 20), (13,)]


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


@pytest.mark.parametrize("places", [1, 6, 16])
@pytest.mark.parametrize("output", ["sigmoid", "tanh_bn", "bn"])
def test_texts_have_one_word_at_each_place(places: int, output: str) -> None:
    texts = InputSpec((5, places), modality="text", words=("<pad>", "<unk>", "a", "b", "c"))
    net = StandardGenerator(texts, 10, latent_size=7, channels=8, output=output)
    x = net(torch.randn(30, 7))
    assert x.shape == (30, 5, places)
    assert torch.equal(texts.decode(texts.encode(x)), x)
    assert len(set(texts.encode(x).flatten().tolist())) > 1
    (x * torch.randn_like(x)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_an_ensemble_of_signals() -> None:
    net = GeneratorEnsemble(spec(1, 64), 4, members=2, latent_size=5, channels=8)
    assert net(torch.randn(5, 5)).shape == (5, 1, 64)
