"""Log-mel spectrograms: against NumPy, and what they do to silence, gain and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.spec import InputSpec
from data.spectrograms import LogMel, mel_bands

RATE = 8000.0
SPEC = InputSpec((2, 100), (-1.0, 3.0), (0.0, 0.0), (1.0, 1.0), rate=RATE)


def expected(wave: np.ndarray, mels: int, window: int, hop: int) -> np.ndarray:
    """Of a wave [L] in [-1, 1], frame by frame and band by band."""
    hann = np.sin(np.pi * np.arange(window) / window) ** 2
    padded = np.pad(wave, (window // 2, window))
    frequency = np.arange(window // 2 + 1) * RATE / window
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), mels + 2) / 2595) - 1)
    rows = []
    for i in range(len(wave) // hop):
        power = np.abs(np.fft.rfft(padded[i * hop :][:window] * hann / hann.sum() * 2)) ** 2
        triangles = [np.interp(frequency, edges[b : b + 3], [0, 1, 0]) for b in range(mels)]
        rows.append([np.log1p(1e8 * (t * power).sum()) / np.log1p(3e8) for t in triangles])
    return np.array(rows).T[::-1]


def test_it_is_that_of_numpy() -> None:
    waves = torch.rand(3, 2, 100, dtype=torch.float64) * 2 - 1
    found = LogMel(SPEC, 5, 32, 16)(2 * waves + 1)
    assert found.shape == (3, 2, 5, 6)
    for i in range(3):
        for channel in range(2):
            values = expected(waves[i, channel].numpy(), 5, 32, 16)
            np.testing.assert_allclose(found[i, channel], values, atol=1e-5)


def test_bands_cover_all_frequencies_but_the_ends() -> None:
    bands = mel_bands(8, 257, RATE)
    between = (bands.argmax(0) > 0) & (bands.argmax(0) < 7)
    torch.testing.assert_close(bands.sum(0)[between], torch.ones(int(between.sum())))


def test_values_lie_in_their_range_and_silence_is_zero() -> None:
    spec = InputSpec((1, 256), (-1.0, 1.0), rate=RATE)
    logmel = LogMel(spec, 8, 64, 32)
    assert logmel(torch.zeros(1, 1, 256)).abs().max() == 0
    loud = torch.randn(64, 1, 256).sign()
    assert 0.8 < logmel(loud).max() <= 1
    assert logmel.range(spec) == (0.0, 1.0)
    measured = logmel.measured(spec, loud)
    assert (measured.shape, measured.modality, measured.rate) == ((1, 8, 8), "image", None)


def test_silence_has_a_finite_gradient() -> None:
    x = torch.zeros(1, 1, 256, requires_grad=True)
    LogMel(InputSpec((1, 256), (-1.0, 1.0), rate=RATE), 8, 64, 32)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_bfloat16_does_not_reach_it() -> None:
    logmel, x = LogMel(SPEC, 5, 32, 16), torch.rand(1, 2, 100)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logmel(x), logmel(x.float()), rtol=0, atol=0)
        assert logmel(x).dtype == torch.float32


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"LogMel is for signals, but the inputs are images"):
        LogMel(InputSpec((1, 8, 8)))
    with pytest.raises(ValueError, match="sample rate"):
        LogMel(InputSpec((1, 4096), (-1.0, 1.0)))
    with pytest.raises(ValueError, match="hop=200"):
        LogMel(SPEC, 5, 32, 200)
    with pytest.raises(ValueError, match="40 bands are more than a window of 32"):
        LogMel(SPEC, 40, 32, 16)
