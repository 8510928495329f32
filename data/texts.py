"""Texts: sequences of words of a vocabulary, as distributions over it, with a picture to read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.modality import Modality

if TYPE_CHECKING:
    from data.spec import InputSpec

PAD, UNKNOWN = "<pad>", "<unk>"  # the first words of every vocabulary
MOST_WORDS = 32_767  # of a vocabulary: what int16 holds
SHOWN, SIZE, LINE, WIDTH, MARGIN = 24, 18, 28, 1200, 14  # texts, and pixels, of a picture


class Text(Modality):
    """[V, L]: at each of L places a distribution over the V words of a vocabulary.

    A text of a data set has one word at each place, and is stored as the words' numbers [L]. What
    is synthesized has one word at each place as well, with the gradient of the distribution that it
    is the mode of (straight-through, Bengio et al., 2013): so student and teacher see what a text
    can be, and nothing is lost when it is stored. An input with several words at a place, as a
    network may be given, is stored as the likeliest ones.
    """

    name = "text"
    plural = "texts"
    layout = "[V, L]"
    rank = 2
    places = (1,)
    storage = torch.int16
    discrete = True

    def check(self, where: str, arrays: NDArray[Any]) -> None:
        if arrays.dtype.kind not in "iu" or arrays.ndim != 2:
            raise ValueError(
                f"{where} is {arrays.dtype} of shape {arrays.shape}; numbers of words, integers "
                "[N, L], are expected"
            )
        if arrays.size and not 0 <= arrays.min() <= arrays.max() < MOST_WORDS:
            raise ValueError(f"{where}: words are numbered from 0 to at most {MOST_WORDS - 1}")

    def tensor(self, arrays: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(arrays, dtype=np.int16))

    def shape(self, stored: Sequence[int], words: Sequence[str]) -> tuple[int, ...]:
        return (len(words), *stored)

    def stored(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape[1:])

    def decode(self, stored: Tensor, shape: Sequence[int], range: tuple[float, float]) -> Tensor:
        return _one_hot(stored.long(), shape[0], torch.float32)

    def encode(self, x: Tensor, range: tuple[float, float]) -> Tensor:
        return x.detach().argmax(1).to(self.storage)

    def noise(self, size: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """Texts of words drawn uniformly."""
        words, places = spec.shape
        return self.decode(
            torch.randint(words, (size, places), generator=generator), spec.shape, spec.range
        )

    def free(self, values: Tensor, spec: InputSpec) -> Tensor:
        return self.standard(values, spec)

    def standard(self, values: Tensor, spec: InputSpec) -> Tensor:
        """The word of the largest value at each place, with the gradient of softmax."""
        found: Tensor = _Likeliest.apply(values)
        return found

    def limits(self, values: Tensor, spec: InputSpec) -> None:
        """Any values will do."""

    def vocabulary(self, words: Sequence[str], shape: Sequence[int]) -> tuple[str, ...]:
        check_words(words)
        if len(words) != shape[0]:
            raise ValueError(
                f"texts have a word for each of their {shape[0]} channels, but there are "
                f"{len(words)} words"
            )
        return tuple(words)

    def fit(self, x: Tensor, size: int | None) -> Tensor:
        length = x.shape[-1]
        if size is None or length == size:
            return x
        if length > size:
            raise ValueError(
                f"data.size={size} would cut texts of {length} places: leave it out, or set "
                "data.dataset.length"
            )
        return F.pad(x, (0, size - length))

    def text(self, x: Tensor, spec: InputSpec) -> str | None:
        """A line for each of the first 24 texts, without the padding at its end."""
        return "\n".join(_lines(x, spec))

    def picture(self, x: Tensor, spec: InputSpec) -> Tensor:
        """The same lines, drawn; what a line has no room for is left out."""
        from PIL import Image, ImageDraw

        lines = _lines(x, spec)
        page = Image.new("L", (WIDTH, LINE * len(lines) + 2 * MARGIN), 250)
        draw = ImageDraw.Draw(page)
        for i, line in enumerate(lines):
            draw.text((MARGIN, MARGIN + i * LINE), line, fill=25, font=_font())
        pixels = torch.from_numpy(np.array(page, dtype=np.float32) / 255)
        return pixels.expand(3, -1, -1).contiguous()


class _Likeliest(torch.autograd.Function):
    """One-hot at the largest of values [B, V, L]; backward, softmax in its place."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:  # type: ignore[override]
        return _one_hot(values.argmax(1), values.shape[1], values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        values, gradient = ctx.saved_tensors[0].transpose(1, 2), gradient.transpose(1, 2)
        p = values.softmax(2)
        return (p * (gradient - (p * gradient).sum(2, keepdim=True))).transpose(1, 2)


def check_words(words: Any) -> None:
    """Check a vocabulary: distinct words, of which the first two are <pad> and <unk>.

    Raises:
        ValueError: for another one.
    """
    if not isinstance(words, (list, tuple)) or not all(isinstance(w, str) for w in words):
        raise ValueError(f"words must be a list of words, not {words!r:.80}")
    if list(words[:2]) != [PAD, UNKNOWN]:
        raise ValueError(f"a vocabulary begins with {PAD} and {UNKNOWN}, not {list(words[:2])}")
    if len(words) > MOST_WORDS:
        raise ValueError(f"a vocabulary has at most {MOST_WORDS} words, not {len(words)}")
    if len(set(words)) < len(words):
        twice = next(w for i, w in enumerate(words) if w in words[:i])
        raise ValueError(f"the vocabulary has {twice!r} more than once")


def word_like(x: Tensor, word: int) -> Tensor:
    """[1, V, 1]: one word as inputs x [B, V, L] have it, made on their device."""
    found = torch.zeros_like(x[:1, :, :1])
    found[:, word] = 1
    return found


def _one_hot(ids: Tensor, words: int, dtype: torch.dtype) -> Tensor:
    """[B, L] as [B, words, L]; words are last in memory, which makes embeddings twice as fast."""
    x = torch.zeros(*ids.shape, words, dtype=dtype, device=ids.device)
    return x.scatter_(2, ids[:, :, None], 1).transpose(1, 2)


def _lines(x: Tensor, spec: InputSpec) -> list[str]:
    found = []
    for row in spec.encode(x[:SHOWN]).tolist():
        words = [spec.words[i] for i in row]
        while words and words[-1] == PAD:
            words.pop()
        found.append(" ".join(words) or PAD)
    return found


@functools.cache
def _font() -> Any:
    """matplotlib's, which has Greek, Cyrillic and Arabic letters too, or else Pillow's."""
    from PIL import ImageFont

    try:
        import matplotlib
    except ImportError:  # it is an extra
        return ImageFont.load_default(SIZE)
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), SIZE)
