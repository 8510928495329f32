"""Signals as noise whose loudness changes over time and frequency."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST = 256  # samples from one frame to the next
SPREAD = 1.5  # of a log amplitude, at first
TILT = 3.0  # by how much the log amplitude falls from the lowest band to the highest, at first
LIMIT = 60.0  # of the log of a power, either way, so that its root has a gradient
WARP = 8.0  # bands are narrow up to 1/8 of the highest frequency and widen above it


class NoiseBands(nn.Module):
    """Features [B, I, bands, frames] to signals [B, C, L]: noise that is drawn anew in each call.

    Filtered noise as in DDSP (Engel et al., ICLR 2020). In frame t, the amplitude of band k is
    exp(a_k(t)), and the power at a frequency lies on a straight line between those of the two
    nearest bands. White noise of this power, under a sine window, is added to that of the frames
    before and after, which half overlap it. A 3×3 convolution and BatchNorm give a_k(t), to which
    each band adds a learned level. At first the levels fall as natural spectra do, and the signals
    have unit variance. Bands are evenly spaced in log(1 + 8 f / f_max), nearly mel.

    Args:
        in_channels: I.
        channels: C.
        length: L.
    """

    bands = 32
    shares: Tensor
    window: Tensor

    def __init__(self, in_channels: int, channels: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.level = nn.Parameter(torch.empty(channels, self.bands, 1))
        frames = self.frames(length)
        self.hop = math.ceil(length / frames)
        shares = band_shares(self.bands, self.hop + 1)
        shares[:, 1:-1] /= 2  # their noise has a real part and an imaginary one
        self.register_buffer("shares", shares, persistent=False)
        times = (torch.arange(2 * self.hop) + 0.5) / (2 * self.hop)
        window = (math.pi * times).sin().repeat(frames, 1)
        window[0, : self.hop] = window[-1, self.hop :] = 1  # no fading in and out
        self.register_buffer("window", window, persistent=False)
        self.reset_parameters()

    @staticmethod
    def frames(length: int) -> int:
        """A multiple of 4: 16 in 4,096 samples, fewer in shorter signals, more in longer ones."""
        return 4 * max(min(4, math.ceil(length / LONGEST)), math.ceil(length / LONGEST / 4))

    def reset_parameters(self) -> None:
        """If a is normal with standard deviation σ, the mean of exp(2a) is exp(2σ²)."""
        self.conv.reset_parameters()
        self.norm.reset_parameters()
        nn.init.constant_(self.norm.weight, SPREAD)
        fall = -TILT * torch.linspace(0, 1, self.bands, device=self.level.device)
        shares = band_shares(self.bands, self.hop + 1, fall.device)
        both = torch.cat([shares, shares[:, 1:-1]], 1)  # negative frequencies as well
        power = (both.mean(1) * (2 * fall).exp()).sum().log() + 2 * SPREAD**2
        with torch.no_grad():
            self.level.copy_((fall - power / 2).view(1, -1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logs = 2 * (self.norm(self.conv(x)) + self.level).to(self.shares.dtype)
        bands = logs.clamp(-LIMIT, LIMIT).exp()
        power = torch.einsum("bckf,kn->bcfn", bands, self.shares)
        noise = torch.randn(*power.shape, 2, device=x.device)
        noise[..., 0, 1] = noise[..., -1, 1] = 0  # where a real signal has no imaginary part
        parts = _inverse_transform(noise * power.sqrt()[..., None])
        first, second = (parts * self.window).split(self.hop, -1)
        sums = F.pad(first, (0, 0, 0, 1)) + F.pad(second, (0, 0, 1, 0))
        start = self.hop // 2
        return sums.flatten(2)[:, :, start : start + self.length]


@torch.compiler.disable  # which has no code for complex numbers, and would warn of that
def _inverse_transform(parts: Tensor) -> Tensor:
    """Real and imaginary parts at each frequency [..., N + 1, 2] to 2·N samples."""
    spectrum = torch.view_as_complex(parts)
    return torch.fft.irfft(spectrum, n=2 * (parts.shape[-2] - 1), norm="ortho")


def band_shares(bands: int, frequencies: int, device: torch.device | None = None) -> Tensor:
    """What each band adds to the power at each frequency, from 0 up: [bands, frequencies].

    Triangles, whose sum at every frequency is 1.
    """
    positions = torch.log1p(WARP * torch.linspace(0, 1, frequencies, device=device)) / math.log1p(
        WARP
    )
    distances = positions * (bands - 1) - torch.arange(bands, device=device)[:, None]
    return (1 - distances.abs()).clamp(min=0)
