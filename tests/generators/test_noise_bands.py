"""Noise drawn by bands: power, window and spectrum, the loudness at first, and the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from generators.noise_bands import NoiseBands, band_shares
from models.initialization import reinitialize

LENGTHS = [(1, 64), (2, 101), (3, 4500), (1, 8), (1, 1)]


def amplitudes(layer: NoiseBands, x: torch.Tensor) -> torch.Tensor:
    return (layer.norm(layer.conv(x)) + layer.level).exp()


@pytest.mark.parametrize(("channels", "length"), LENGTHS)
def test_a_sum_of_cosines_under_overlapping_windows(
    channels: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both parts of the noise at 1, sample by sample."""
    monkeypatch.setattr(torch, "randn", lambda *shape, device: torch.ones(shape, device=device))
    layer = NoiseBands(5, channels, length).eval()
    frames, hop = layer.frames(length), layer.hop
    x = torch.rand(2, 5, layer.bands, frames)
    found = layer(x)
    assert found.shape == (2, channels, length)
    power = torch.einsum(
        "bckf,kn->bcfn", amplitudes(layer, x).square(), band_shares(layer.bands, hop + 1)
    ).double()
    for t in range(0, length, max(1, length // 50)):
        place = t + hop // 2
        expected = torch.zeros(2, channels, dtype=torch.float64)
        for frame in (place // hop - 1, place // hop):
            if not 0 <= frame < frames:
                continue
            at = place - frame * hop
            alone = (frame == 0 and at < hop) or (frame == frames - 1 and at >= hop)
            window = 1 if alone else math.sin(math.pi * (at + 0.5) / (2 * hop))
            angles = math.pi * torch.arange(hop + 1).double() * at / hop
            waves = math.sqrt(2) * (angles.cos() - angles.sin())
            waves[0], waves[-1] = 1, math.cos(math.pi * at)
            terms = power[:, :, frame].sqrt() * waves
            expected += window * terms.sum(-1) / math.sqrt(2 * hop)
        torch.testing.assert_close(found[:, :, t].double(), expected, atol=1e-4, rtol=1e-3)


def test_shares_of_the_bands() -> None:
    shares = band_shares(32, 257)
    torch.testing.assert_close(shares.sum(0), torch.ones(257))
    peaks = shares.argmax(1)
    assert (peaks.diff() > 0).all()
    assert peaks[0] == 0
    assert peaks[-1] == 256
    assert peaks[16].item() / 256 == pytest.approx((9**0.5 - 1) / 8, abs=0.02)


@pytest.mark.parametrize("length", [4096, 8000, 101])
def test_power_that_is_constant_gives_white_noise_of_unit_variance(length: int) -> None:
    torch.manual_seed(0)
    layer = NoiseBands(4, 1, length).eval()
    torch.nn.init.zeros_(layer.norm.weight)
    torch.nn.init.zeros_(layer.level)
    x = layer(torch.zeros(4000, 4, layer.bands, layer.frames(length))).detach()[:, 0]
    places = torch.linspace(0, length - 1, 50).long()
    torch.testing.assert_close(x[:, places].var(0), torch.ones(50), atol=0.15, rtol=0.0)
    assert (x[:, 1:] * x[:, :-1]).mean().abs() < 0.02
    assert (x[1:] * x[:-1]).mean().abs() < 0.02  # each has noise of its own


def test_begins_with_unit_variance_and_a_falling_spectrum() -> None:
    torch.manual_seed(0)
    layer = NoiseBands(16, 1, 4096)
    x = layer(torch.randn(200, 16, layer.bands, 16)).detach()
    assert 0.8 < x.std() < 1.25
    powers = torch.fft.rfft(x).abs().square().mean((0, 1))
    assert powers[10:100].mean() > 20 * powers[-500:].mean()


def test_drawn_anew_it_begins_as_a_new_one() -> None:
    layer = nn.Sequential(NoiseBands(16, 1, 4096))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    reinitialize(layer, torch.Generator().manual_seed(3))
    assert torch.equal(layer[0].norm.weight, NoiseBands(16, 1, 4096).norm.weight)
    assert 0.8 < layer(torch.randn(200, 16, layer[0].bands, 16)).std() < 1.25


def test_another_draw_in_each_call() -> None:
    layer = NoiseBands(4, 1, 64).eval()
    x = torch.randn(2, 4, layer.bands, layer.frames(64))
    assert not torch.equal(layer(x), layer(x))


def test_every_parameter_has_a_gradient() -> None:
    layer = NoiseBands(4, 2, 300)
    x = torch.randn(3, 4, layer.bands, layer.frames(300))
    (layer(x) * torch.randn(3, 2, 300)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("level", [-300.0, 300.0])
def test_silence_and_noise_without_bound_have_a_gradient(level: float) -> None:
    layer = NoiseBands(4, 1, 64)
    with torch.no_grad():
        layer.level += level
    x = torch.randn(3, 4, layer.bands, layer.frames(64), requires_grad=True)
    signals = layer(x)
    signals.square().sum().backward()
    assert signals.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_gradient_is_that_of_the_same_draw() -> None:
    layer = NoiseBands(2, 1, 40).eval()
    with torch.no_grad():
        layer.level.zero_()
    x = torch.randn(2, 2, layer.bands, layer.frames(40))
    weights = torch.randn(2, 1, 40)

    def value() -> torch.Tensor:
        torch.manual_seed(0)
        return (layer(x) * weights).sum()

    value().backward()
    for band in (0, 9, 31):
        with torch.no_grad():
            layer.level[0, band] += 0.01
            above = value()
            layer.level[0, band] -= 0.02
            below = value()
            layer.level[0, band] += 0.01
        assert layer.level.grad is not None
        slope = layer.level.grad[0, band, 0].item()
        assert ((above - below) / 0.02).item() == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_it_compiles_with_the_transform_left_out() -> None:
    """Inductor has no code for complex numbers."""
    layer = NoiseBands(2, 1, 40)
    graphs = torch._dynamo.explain(layer)(torch.randn(2, 2, layer.bands, layer.frames(40)))
    assert graphs.graph_count == 2
    called = {str(node.target) for graph in graphs.graphs for node in graph.graph.nodes}
    assert not any("complex" in name or "irfft" in name for name in called)
