"""Signals: waveforms and other values in time, with a picture of their course."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.modality import Modality, as_float

if TYPE_CHECKING:
    from data.spec import InputSpec

MOST_CHANNELS = 64
ROWS, COLUMNS, WIDTH, HEIGHT, GAP = 8, 2, 590, 96, 6  # of a picture
HEARD, PAUSE = 8, 0.15  # signals to listen to, and seconds between them
SLOWEST = 1000  # samples in a second that players take for sound

TURN = "save signals.transpose(0, 2, 1)"


class Signal(Modality):
    """[C, L]: channels of L samples in [-1, 1], such as a recording; in files [L] or [C, L].

    Files hold int16, or floats in [-1, 1], which stay as they are. ``data.size`` is a number of
    samples to which shorter signals are padded on both sides.
    """

    name = "signal"
    plural = "signals"
    layout = "[C, L]"
    rank = 2
    places = (1,)
    natural = (-1.0, 1.0)
    storage = torch.int16

    def check(self, where: str, arrays: NDArray[Any]) -> None:
        kind = arrays.dtype
        if kind != np.int16 and kind.kind != "f":
            raise ValueError(
                f"{where} is {kind}; int16, or floats in -1..1, are expected: divide by the "
                "largest possible value"
            )
        if arrays.ndim == 3 and not 1 <= arrays.shape[1] <= MOST_CHANNELS:
            last = 1 <= arrays.shape[2] <= MOST_CHANNELS
            raise ValueError(
                f"{where} has shape {arrays.shape}; [N, L] or [N, C, L] with C from 1 to "
                f"{MOST_CHANNELS} is expected"
                + (f". Channels seem to come last: {TURN}" if last else "")
            )
        if arrays.ndim not in (2, 3):
            raise ValueError(f"{where} has shape {arrays.shape}; [N, L] or [N, C, L] is expected")
        if kind.kind == "f" and arrays.size:
            bad = ~(np.abs(arrays) <= 1).reshape(len(arrays), -1).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"{where}: signal {int(bad.argmax())} has values that are not in -1..1: divide "
                    "all signals by one and the same number"
                )

    def doubt(self, arrays: NDArray[Any]) -> str | None:
        if arrays.ndim < 3 or arrays.shape[1] <= arrays.shape[2]:
            return None
        channels, length = arrays.shape[1:]
        return f"{channels} channels of {length} samples each; if it is the other way round, {TURN}"

    def tensor(self, arrays: NDArray[Any]) -> Tensor:
        x = arrays[:, None] if arrays.ndim == 2 else arrays
        x = np.ascontiguousarray(x, dtype=np.int16 if x.dtype == np.int16 else np.float32)
        return torch.from_numpy(x if x.flags.writeable else x.copy())

    def fit(self, x: Tensor, size: int | None) -> Tensor:
        length = x.shape[-1]
        if size is None or length == size:
            return x
        if length > size:
            raise ValueError(
                f"data.size={size} would cut signals of {length} samples: leave it out, or cut or "
                "resample them yourself"
            )
        before = (size - length) // 2
        return F.pad(x, (before, size - length - before))

    def blank(self, range: tuple[float, float]) -> float:
        return (range[0] + range[1]) / 2

    def picture(self, x: Tensor, spec: InputSpec) -> Tensor:
        """The course of the first 16 signals, each scaled to its largest value; four channels."""
        low, high = spec.range
        x = 2 * (as_float(x[: ROWS * COLUMNS, :4]) - low) / (high - low) - 1
        tiles = [torch.cat([_course(c) for c in signal], dim=0) for signal in x]
        rows = -(-len(tiles) // COLUMNS)
        height = tiles[0].shape[0]
        page = torch.ones(rows * (height + GAP) + GAP, COLUMNS * (WIDTH + GAP) + GAP)
        for i, tile in enumerate(tiles):
            top, left = GAP + i // COLUMNS * (height + GAP), GAP + i % COLUMNS * (WIDTH + GAP)
            page[top : top + height, left : left + WIDTH] = tile
        return page.expand(3, -1, -1).contiguous()

    def sound(self, x: Tensor, spec: InputSpec) -> Tensor | None:
        """The first channel of the first 8, with pauses, if the sample rate is that of sound."""
        if spec.rate is None or spec.rate < SLOWEST:
            return None
        low, high = spec.range
        x = 2 * (as_float(x[:HEARD, 0]) - low) / (high - low) - 1
        pause = x.new_zeros(len(x), round(PAUSE * spec.rate))
        return torch.cat([x, pause], dim=1).clamp(-1, 1).reshape(1, -1)


def _course(x: Tensor) -> Tensor:
    """A signal [L] in [-1, 1] drawn as [HEIGHT, WIDTH], dark on white with a grey line at 0."""
    x = x / x.abs().max().clamp_min(1e-3)
    if len(x) < WIDTH:
        x = F.interpolate(x[None, None], WIDTH, mode="linear", align_corners=True)[0, 0]
    top = F.adaptive_max_pool1d(x[None], WIDTH)[0]
    bottom = -F.adaptive_max_pool1d(-x[None], WIDTH)[0]
    # joined to the column before, so that a steep slope has no gaps
    top[1:], bottom[1:] = top[1:].maximum(bottom[:-1]), bottom[1:].minimum(top[:-1])
    level = torch.linspace(1, -1, HEIGHT)[:, None]
    half = 1.5 / HEIGHT
    ink = (level <= top + half) & (level >= bottom - half)
    tile = torch.full((HEIGHT, WIDTH), 0.96)
    tile[HEIGHT // 2] = 0.75
    return tile.masked_fill(ink, 0.15)
