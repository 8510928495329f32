"""Bands of noise: the sum by definition, the spectrum and the loudness that they begin with."""

from __future__ import annotations

import pytest
import torch

from generators.noise_bands import NoiseBands, bands_of_noise


def amplitudes(layer: NoiseBands, x: torch.Tensor) -> torch.Tensor:
    return (layer.norm(layer.conv(x)) + layer.level).exp()


@pytest.mark.parametrize(("channels", "length"), [(1, 64), (2, 101), (3, 4500), (1, 8)])
def test_sum_of_bands_under_straight_lines(channels: int, length: int) -> None:
    torch.manual_seed(0)
    layer = NoiseBands(5, channels, length).double().eval()
    frames = layer.frames(length)
    x = torch.randn(2, 5, layer.bands, frames, dtype=torch.float64)
    found = layer(x)
    assert found.shape == (2, channels, length)
    noise, _ = bands_of_noise(channels, layer.bands, frames * layer.hop)
    a = amplitudes(layer, x)
    for t in range(length):
        # A sample's middle in frames, where frame f's is at f.
        at = (t + 0.5 - (layer.hop - layer.hop // 2)) / layer.hop
        left = min(max(int(at // 1), 0), frames - 1)
        right = min(max(int(at // 1) + 1, 0), frames - 1)
        part = at % 1
        value = (1 - part) * a[..., left] + part * a[..., right]
        expected = (value * noise[:, :, t]).sum(-1)
        torch.testing.assert_close(found[:, :, t], expected, atol=1e-6, rtol=1e-5)


def test_bands_add_up_to_white_noise() -> None:
    noise, share = bands_of_noise(2, 16, 4096)
    assert noise.shape == (2, 16, 4096)
    assert share.sum().item() == pytest.approx(1)
    assert noise.square().mean((0, 2)).sum().item() == pytest.approx(1)
    spectrum = torch.fft.rfft(noise.sum(1)).abs().square().unfold(1, 256, 256).mean(2)
    assert (spectrum / spectrum.mean()).sub(1).abs().max() < 0.3
    powers = torch.fft.rfft(noise).abs().square()
    peaks = (powers * torch.arange(2049)).sum(2) / powers.sum(2)
    assert (peaks.diff(dim=1) > 0).all()


def test_begins_with_unit_variance_and_a_falling_spectrum() -> None:
    torch.manual_seed(0)
    layer = NoiseBands(16, 1, 4096)
    x = layer(torch.randn(200, 16, layer.bands, 16)).detach()
    assert 0.8 < x.std() < 1.25
    powers = torch.fft.rfft(x).abs().square().mean((0, 1))
    assert powers[10:100].mean() > 20 * powers[-500:].mean()


def test_every_parameter_has_a_gradient() -> None:
    layer = NoiseBands(4, 2, 300)
    (layer(torch.randn(3, 4, 16, 16)) * torch.randn(3, 2, 300)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
