"""Generators of signals, vectors and texts: shapes, ranges, and classes."""

from __future__ import annotations

import pytest
import torch

from data.spec import InputSpec
from generators.bodies import Normal, Words
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
def test_classes_make_a_difference(
    shape: tuple[int, ...], conditioning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    z = torch.randn(1, 100).expand(3, -1)
    # The same draw for each class: of vectors, and of signals.
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: torch.ones(shape, device=device))
    options = {"channels": 8, "conditional": True, "conditioning": conditioning}
    net = StandardGenerator(spec(*shape), 3, **options).eval()  # type: ignore[arg-type]
    if conditioning == "norm":
        for name, p in net.named_parameters():
            if name.endswith("shift"):
                torch.nn.init.normal_(p)
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


def test_vectors_are_draws_from_normal_distributions() -> None:
    """With the gradient of the reparameterised draw: dx/dm = 1, dx/ds = x - m."""
    torch.manual_seed(0)
    layer = Normal(3, 2)
    features = torch.randn(3)
    mean, spread = layer.linear(features).chunk(2)
    x = layer(features.expand(20000, 3))
    torch.testing.assert_close(x.mean(0), mean, atol=0.05, rtol=0.0)
    torch.testing.assert_close(x.std(0), spread.exp(), atol=0.05, rtol=0.0)
    [gradient] = torch.autograd.grad(x.sum(), layer.linear.bias)
    expected = torch.cat([torch.full((2,), 20000.0), (x - mean).sum(0)])
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=0.5)


def test_words_are_draws_from_a_softmax() -> None:
    """Of the logits after BatchNorm, here in evaluation mode, where it changes nothing."""
    torch.manual_seed(0)
    layer = Words(3, 5).eval()
    features = torch.randn(1, 3, 1)
    logits = layer.linear(features[..., 0])[0] + layer.shift
    drawn = layer(features.expand(-1, -1, 40000)).argmax(1)
    shares = drawn.flatten().bincount(minlength=5) / 40000
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.01, rtol=0.0)


def test_half_of_the_words_are_padding_at_first() -> None:
    torch.manual_seed(0)
    words = Words(16, 1000)(torch.randn(64, 16, 10)).argmax(1)
    assert 0.35 < (words == 0).float().mean() < 0.65
    assert len(words.unique()) > 250  # of 320 others, if none were drawn twice
