"""Pairs: two inputs of one thing, each with a modality of its own, together as one input."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.modality import COMPOSED, Modality, as_float, modality_named

if TYPE_CHECKING:
    from data.spec import InputSpec

PART = re.compile(r"(\w+)\[(\d+(?:,\d+){0,3})\](?:@(\d+(?:\.\d+)?(?:e[+-]?\d+)?))?")
PARTS = ("a", "b")
GAP, LARGEST = 12, 1200  # pixels between the pictures of the two, and of both together


class Pair(Modality):
    """[1, A + B]: the A values of one input and the B of another, each scaled to 0..1.

    Its name says what it holds, such as ``image[1,8,8]+signal[1,4096]@8000``, so that whatever
    knows an input by the name of its modality needs to know nothing of pairs. A network is shown
    one of the two by :class:`data.transforms.Part`.

    Args:
        a: of the first: shape, modality and rate.
        b: of the second.
    """

    plural = "pairs"
    layout = "[1, A + B]"
    rank = 2
    storage = torch.float32
    synthesized = False

    def __init__(self, a: InputSpec, b: InputSpec) -> None:
        self.parts = dict(zip(PARTS, (a, b), strict=True))
        self.name = "+".join(map(_said, (a, b)))  # type: ignore[misc]
        self.sizes = [math.prod(spec.shape) for spec in (a, b)]

    @property
    def pair_shape(self) -> tuple[int, int]:
        """Of a pair."""
        return 1, sum(self.sizes)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """Pairs [B, 1, A + B] in 0..1 of inputs in the natural ranges of their modalities."""
        flat = []
        for spec, x in zip(self.parts.values(), (a, b), strict=True):
            low, high = spec.range
            flat.append(((x - low) / (high - low)).flatten(1))
        return torch.cat(flat, dim=1).unsqueeze(1)

    def part(self, x: Tensor, which: str, range: tuple[float, float]) -> Tensor:
        """One of the two [B, *shape], in its modality's natural range.

        Args:
            x: pairs [B, 1, A + B] in ``range``.
            which: a or b.
        """
        spec = self.parts[which]
        flat = x[:, 0].split(self.sizes, dim=1)[PARTS.index(which)]
        low, high = spec.range
        scale = (high - low) / (range[1] - range[0])
        return ((flat - range[0]) * scale + low).unflatten(1, spec.shape)

    def check(self, where: str, arrays: NDArray[Any]) -> None:
        wanted = f"numbers in 0..1 of shape [N, 1, {sum(self.sizes)}] are expected"
        if arrays.dtype.kind != "f" or arrays.shape[1:] != self.pair_shape:
            raise ValueError(f"{where} is {arrays.dtype} of shape {arrays.shape}; {wanted}")
        if not ((arrays >= 0) & (arrays <= 1)).all():
            raise ValueError(f"{where} has values that are not in 0..1; {wanted}")

    def tensor(self, arrays: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(arrays, dtype=np.float32))

    def picture(self, x: Tensor, spec: InputSpec) -> Tensor:
        """The picture of the first inputs above that of the second."""
        x = as_float(x)
        pictures = [
            part.kind.picture(self.part(x, which, spec.range), part)
            for which, part in self.parts.items()
        ]
        width = max(picture.shape[2] for picture in pictures)
        rows = [F.pad(p, (0, width - p.shape[2], 0, GAP), value=1.0) for p in pictures]
        page = torch.cat(rows, dim=1)[:, :-GAP]
        share = LARGEST / max(page.shape)
        if share >= 1:
            return page
        size = [max(1, math.floor(side * share)) for side in page.shape[1:]]
        return F.interpolate(page[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)

    def sound(self, x: Tensor, spec: InputSpec) -> Tensor | None:
        """That of the first of the two that can be heard."""
        heard = next((n for n, part in self.parts.items() if part.rate is not None), None)
        if heard is None:
            return None
        part = self.parts[heard]
        return part.kind.sound(self.part(as_float(x), heard, spec.range), part)


def pair_of(a: InputSpec, b: InputSpec) -> Pair:
    """The modality of two inputs together, known by its name from now on."""
    pair = modality_named("+".join(map(_said, (a, b))))
    assert isinstance(pair, Pair)
    return pair


def plain_spec(kind: str, shape: tuple[int, ...], rate: float | None = None) -> InputSpec:
    """Inputs of a kind in its natural range, with moments that suit none in particular."""
    from data.spec import InputSpec

    low, high = modality_named(kind).natural
    mean, std = ((low + high) / 2,) * shape[0], ((high - low) / 4,) * shape[0]
    return InputSpec(shape, (low, high), mean, std, kind, rate)


def _said(spec: InputSpec) -> str:
    rate = "" if spec.rate is None else f"@{spec.rate:.15g}"
    return f"{spec.modality}[{','.join(map(str, spec.shape))}]{rate}"


def _named(name: str) -> Pair | None:
    """The pair that a name describes; None for other names.

    Raises:
        ValueError: for inputs that cannot be.
    """
    found = [PART.fullmatch(part) for part in name.split("+")]
    if len(found) != len(PARTS) or not all(found):
        return None
    specs = []
    for match in found:
        assert match is not None
        shape = tuple(int(side) for side in match[2].split(","))
        specs.append(plain_spec(match[1], shape, float(match[3]) if match[3] else None))
    return Pair(*specs)


COMPOSED.append(_named)
