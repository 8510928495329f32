"""Signals as noise whose loudness changes over time and frequency."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST = 256  # samples of a frame
SPREAD = 1.5  # of a log amplitude, at first
TILT = 3.0  # by how much the log amplitude falls from the lowest band to the highest, at first
WARP = 8.0  # bands are narrow up to 1/8 of the highest frequency and widen above it
SEED = 0  # of the noise


class NoiseBands(nn.Module):
    """Features [B, I, bands, frames] to signals [B, C, L]: bands of noise under envelopes.

    Filtered noise as in DDSP (Engel et al., ICLR 2020): x = Σ_k exp(a_k(t)) n_k(t), where n_k is a
    fixed noise, of its own for each channel, of which band k is left, and a_k(t) lies on straight
    lines, in amplitude, between the middles of the frames. A 3×3 convolution and BatchNorm give
    a_k, to which each band adds a learned level. At first the levels fall as natural spectra do,
    and x has unit variance. Bands are triangles, evenly spaced in log(1 + 8 f / f_max), nearly mel.

    Args:
        in_channels: I.
        channels: C.
        length: L.
    """

    bands = 16
    noise: Tensor
    share: Tensor

    def __init__(self, in_channels: int, channels: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.level = nn.Parameter(torch.empty(channels, self.bands, 1))
        frames = self.frames(length)
        self.hop = math.ceil(length / frames)
        noise, share = bands_of_noise(channels, self.bands, frames * self.hop)
        self.register_buffer("noise", _in_frames(noise, self.hop), persistent=False)
        self.register_buffer("share", share, persistent=False)
        self.reset_parameters()

    @staticmethod
    def frames(length: int) -> int:
        """16, or as many more as frames of 256 samples need: a multiple of 4."""
        return 4 * max(4, math.ceil(length / LONGEST / 4))

    def reset_parameters(self) -> None:
        """If a is normal with standard deviation σ, the mean of exp(2a) is exp(2σ²)."""
        self.conv.reset_parameters()
        self.norm.reset_parameters()
        nn.init.constant_(self.norm.weight, SPREAD)
        fall = -TILT * torch.linspace(0, 1, self.bands, device=self.level.device)
        power = (self.share * (2 * fall).exp()).sum().log() + 2 * SPREAD**2
        with torch.no_grad():
            self.level.copy_((fall - power / 2).view(1, -1, 1))

    def forward(self, x: Tensor) -> Tensor:
        amplitudes = (self.norm(self.conv(x)) + self.level).exp()
        parts = torch.einsum("bckf,ckft->bcft", amplitudes, self.noise.to(amplitudes))
        first, second = parts.split(self.hop, -1)
        sums = F.pad(first, (0, 0, 0, 1)) + F.pad(second, (0, 0, 1, 0))
        start = self.hop // 2
        return sums.flatten(2)[:, :, start : start + self.length]


def bands_of_noise(channels: int, bands: int, length: int) -> tuple[Tensor, Tensor]:
    """Noise by band [channels, bands, length], and the share of each in its power [bands].

    Their sum is nearly white, with unit variance.
    """
    positions = torch.log1p(WARP * torch.linspace(0, 1, length // 2 + 1)) / math.log1p(WARP)
    centres = torch.arange(bands)[:, None]
    weights = (1 - (positions * (bands - 1) - centres).abs()).clamp(min=0)
    white = torch.randn(channels, 1, length, generator=torch.Generator().manual_seed(SEED))
    noise = torch.fft.irfft(torch.fft.rfft(white) * weights, n=length)
    power = noise.square().mean((0, 2))
    total = power.sum()
    return noise / total.sqrt(), power / total


def _in_frames(noise: Tensor, hop: int) -> Tensor:
    """[C, K, L] to [C, K, frames, 2·hop]: the part of each frame in straight lines between them."""
    frames, start = noise.shape[2] // hop, hop // 2
    rise = (torch.arange(hop) + 0.5) / hop
    lines = torch.cat([rise, 1 - rise]).repeat(frames, 1)
    lines[0, :hop] = lines[-1, hop:] = 1  # no fading in and out
    parts = F.pad(noise, (start, 2 * hop - start)).unfold(2, 2 * hop, hop)
    return parts[:, :, :frames] * lines
