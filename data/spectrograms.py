"""Spectrograms: signals as the pictures of their frequencies over time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from data.modality import require
from data.spec import InputSpec
from data.transforms import Transform

MOST = 3.0  # of the power of a frame, in all bands together, for samples in [-1, 1]


class LogMel(Transform):
    """Signals [B, C, L] as log-mel spectrograms [B, C, mels, L / hop]: images in [0, 1].

    Power spectra of frames under a Hann window, of which a full sine has the power 1, are summed
    in bands that are triangles of equal width on the mel scale, m = 2595 log10(1 + f/700), from 0
    to half the sample rate. A power p becomes log(1 + p/floor) / log(1 + 3/floor), which is close
    to decibels above the floor, 0 for silence, and smooth. Frames are centred at multiples of
    ``hop``, with silence beyond the ends, and the highest band is the first row.

    Args:
        spec: of signals whose sample rate is known.
        mels: bands.
        window: samples of a frame.
        hop: samples from a frame to the next.
        floor: power in decibels, of a full sine's, at which the scale turns from linear to
            logarithmic, below 0.

    Raises:
        ValueError: for other inputs, signals of unknown sample rate, numbers out of range, and so
            many bands that one has no frequency in it.
    """

    hann: Tensor
    bands: Tensor

    def __init__(
        self,
        spec: InputSpec,
        mels: int = 32,
        window: int = 512,
        hop: int = 128,
        floor: float = -80.0,
    ) -> None:
        super().__init__()
        require(spec, ("signal",), "LogMel", "choose data that are signals, such as data=fsdd")
        if spec.rate is None:
            raise ValueError("LogMel needs the sample rate of its signals: give data.dataset.rate")
        if not (1 <= hop <= min(window, spec.shape[1]) and mels >= 1 and floor < 0):
            raise ValueError(
                "LogMel needs mels of at least 1, a hop from 1 to the window and to the length of "
                f"a signal, and a floor below 0, but has mels={mels}, window={window}, hop={hop}, "
                f"floor={floor}"
            )
        self.low, high = spec.range
        self.width = high - self.low
        self.window, self.hop, self.rows = window, hop, spec.shape[1] // hop
        self.floor = 10 ** (floor / 10)
        hann = torch.hann_window(window)
        self.register_buffer("hann", hann * (2 / hann.sum()), persistent=False)
        bands = mel_bands(mels, window // 2 + 1, spec.rate)
        if bands.sum(1).min() == 0:
            raise ValueError(
                f"LogMel: {mels} bands are more than a window of {window} samples tells apart: "
                "give fewer mels or a longer window"
            )
        self.register_buffer("bands", bands.flip(0).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, length = x.shape[1:]
        waves = ((x.float() - self.low) * (2 / self.width) - 1).reshape(-1, length)
        half = self.window // 2
        padded = F.pad(waves, (half, self.window - half))
        frames = padded.unfold(1, self.window, self.hop)[:, : self.rows]
        with torch.autocast(x.device.type, enabled=False):
            power = torch.view_as_real(torch.fft.rfft(frames * self.hann)).square().sum(-1)
            mel = self.bands @ power.transpose(1, 2)
        level = (mel / self.floor).log1p() / math.log1p(MOST / self.floor)
        return level.view(-1, channels, *level.shape[1:])

    def range(self, takes: InputSpec) -> tuple[float, float]:
        return 0.0, 1.0


def mel_bands(mels: int, frequencies: int, rate: float) -> Tensor:
    """The weights [mels, frequencies] of each band at frequencies from 0 to ``rate`` / 2."""
    at = torch.linspace(0, rate / 2, frequencies, dtype=torch.float64)
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    width = edges.diff()
    rising = (at - edges[:-2, None]) / width[:-1, None]
    falling = (edges[2:, None] - at) / width[1:, None]
    return torch.minimum(rising, falling).clamp_min(0).float()
