"""What passes between a source, a teacher and a student."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from data import images, pair, signals, texts, vectors  # noqa: F401 (known once they are defined)
from data.categories import Column, Groups, checked, columns_of
from data.modality import USUAL, Modality, modality_named, usual

# Of the largest value. No inputs spread wider than half their range, but networks that take values
# as they are have a std of 1; values in 0..255 have one of 50 or more.
WIDEST_STD = 5.0
EXPECTED = ("shape", "range", "mean", "std", "classes")
MORE = ("rate", "words", "groups", "columns")  # that not every input has
LARGEST = 3e38  # of float32, in which networks compute


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of its input; it travels with a teacher's checkpoint.

    Args:
        shape: of one input, channels first, such as ``(3, 32, 32)``.
        range: smallest and largest value of an input before normalisation.
        mean: one value per channel, in units of the range; of texts, which are not normalised, a
            single 0.
        std: one value per channel, in units of the range; of texts a single 1.
        modality: what kind of input it is; by default image, signal or vector, by the number of
            axes.
        rate: samples in a second, of signals where it is known.
        words: the vocabulary of texts, a word for each channel.
        groups: of vectors, [start, end) of columns that are one category each: at each input one of
            them is 1 and the others are 0, or they are shares that sum to 1.
        columns: of vectors that are rows of a table, what its columns say, where they have names.

    Raises:
        ValueError: if the parts are not such numbers, or do not fit together.
    """

    shape: tuple[int, ...]
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    modality: str = ""
    rate: float | None = None
    words: tuple[str, ...] = ()
    groups: Groups = ()
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        for name in ("shape", "range", "mean", "std"):
            values = getattr(self, name)
            kind = Integral if name == "shape" else Real
            if not isinstance(values, (list, tuple)) or not all(_is(v, kind) for v in values):
                wanted = "whole numbers" if name == "shape" else "numbers"
                raise ValueError(f"{name} must be a list of finite {wanted}, not {values!r:.80}")
            object.__setattr__(self, name, tuple(values))
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape needs sizes of at least 1, but is {self.shape}")
        object.__setattr__(self, "modality", self.modality or usual(len(self.shape)))
        if self.kind.rank != len(self.shape):
            raise ValueError(
                f"{self.kind.plural} are {self.kind.layout}, but the shape is {list(self.shape)}"
            )
        if self.rate is not None and not (_is(self.rate, Real) and self.rate > 0):
            raise ValueError(f"rate is a number of samples in a second, but is {self.rate!r}")
        if len(self.range) != 2 or self.range[0] >= self.range[1]:
            raise ValueError(f"range must be two ascending values, but is {self.range}")
        object.__setattr__(self, "words", self.kind.vocabulary(self.words, self.shape))
        channels = 1 if self.kind.discrete else self.shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"mean and std need one value for each of the {channels} channel(s), "
                f"but have {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, but is {self.std}")
        self._check_scale()
        object.__setattr__(self, "groups", checked(self.groups, self.shape))
        object.__setattr__(self, "columns", columns_of(self.columns, self.shape))

    @classmethod
    def unscaled(
        cls,
        shape: tuple[int, ...],
        range: tuple[float, float],
        modality: str = "",
        rate: float | None = None,
        words: tuple[str, ...] = (),
        groups: Groups = (),
        columns: tuple[Column, ...] = (),
    ) -> InputSpec:
        """One with mean 0 and std 1, as where they are not known yet."""
        channels = 1 if modality and modality_named(modality).discrete else shape[0]
        mean, std = (0.0,) * channels, (1.0,) * channels
        return cls(shape, range, mean, std, modality, rate, words, groups, columns)

    def _check_scale(self) -> None:
        """Refuse moments of another scale than the range's, such as 0..255 for 0..1."""
        low, high = self.range
        width = high - low
        slack = 1e-4 * width  # a mean of a constant channel may be rounded
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            scale = f"(channel {channel}) does not fit values in {low:g}..{high:g}"
            if not low - slack <= mean <= high + slack:
                wrong = f"mean {mean:g} {scale}"
            elif std > WIDEST_STD * max(width, abs(low), abs(high)):
                wrong = f"std {std:g} {scale}"
            else:
                continue
            byte = max(*self.mean, *self.std) > 2 and high <= 1
            hint = "divide mean and std by 255" if byte else "give them in units of the range"
            raise ValueError(f"{wrong}: {hint}")

    def normalize(self, x: Tensor) -> Tensor:
        """Map inputs [B, *shape] in ``range`` to zero mean and unit std; nothing else does."""
        if self.kind.discrete:
            return x
        mean, std = _moments(self, x.device, x.dtype)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`: back to values in units of ``range``."""
        if self.kind.discrete:
            return x
        mean, std = _moments(self, x.device, x.dtype)
        return x * std + mean

    def encode(self, x: Tensor) -> Tensor:
        """Inputs [B, *shape] as their modality stores them, clamped to ``range``."""
        return self.kind.encode(x, self.range)

    def decode(self, stored: Tensor) -> Tensor:
        """The inverse: stored inputs as float32 in ``range``."""
        return self.kind.decode(stored, self.shape, self.range)

    def noise(self, size: int, device: torch.device) -> Tensor:
        """[size, *shape], random but always the same, for a look at a network."""
        return self.kind.noise(size, self, torch.Generator().manual_seed(0)).to(device)

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of one input as it is stored."""
        return self.kind.stored(self.shape)

    @property
    def kind(self) -> Modality:
        """The modality itself."""
        return modality_named(self.modality)

    def to_dict(self) -> dict[str, Any]:
        """Its values, without a modality that the number of axes tells, and what is not known."""
        values = asdict(self)
        if self.modality in USUAL:
            del values["modality"]
        return {k: v for k, v in values.items() if k not in MORE or v}


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is a finite number of a kind; True and 10**400 are not."""
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return -LARGEST <= value <= LARGEST  # false for NaN


@functools.lru_cache(maxsize=64)  # built once: a copy to the device each step would make it wait
def _moments(spec: InputSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (1, -1) + (1,) * (len(spec.shape) - 1)
    with torch.inference_mode(False):  # cached: must serve a backward pass later
        mean = torch.tensor(spec.mean, device=device, dtype=dtype).view(shape)
        return mean, torch.tensor(spec.std, device=device, dtype=dtype).view(shape)


@dataclass
class Expected:
    """What is known about a teacher's input before any data is opened, and from where.

    Args:
        values: those of ``shape``, ``range``, ``mean``, ``std`` and ``classes`` that are known.
        origins: for each, such as "teacher.shape", "its file" or "timm's resnet18".
    """

    values: dict[str, Any]
    origins: dict[str, str]

    def missing(self) -> list[str]:
        return [name for name in EXPECTED if name not in self.values]

    def origin(self, name: str) -> str:
        """ " (its file)" or the like, and nothing where the data says it."""
        return f" ({self.origins[name]})" if name in self.origins else ""

    @property
    def spec(self) -> InputSpec:
        """The specification, once nothing is missing.

        Raises:
            ValueError: if the values do not fit together.
        """
        more = [name for name in ("modality", *MORE) if name in self.values]
        names = [name for name in EXPECTED if name != "classes"]
        return InputSpec(**{name: self.values[name] for name in [*names, *more]})

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order; none where they are not known."""
        return tuple(self.values.get("classes", ()))


@dataclass
class Batch:
    """One batch of inputs, in the value range of their specification.

    Args:
        input: [B, *shape].
        label: [B] int64, or None if it is unknown.
        index: [B] int64, the position in the source's store, or None.
        teacher_logits: [B, C], the teacher's earlier answers on these inputs, or None.
        views: further inputs [B, *shape] that belong to these, by name.
        labelled: how many inputs have a label, the first ones; None if all have, or none has.
    """

    input: Tensor
    label: Tensor | None = None
    index: Tensor | None = None
    teacher_logits: Tensor | None = None
    views: Mapping[str, Tensor] = field(default_factory=dict)
    labelled: int | None = None

    def first(self, count: int) -> Batch:
        """The first inputs alone, with all that belongs to them; these have labels."""
        of = {name: x[:count] for name, x in self.views.items()}
        rest = (self.label, self.index, self.teacher_logits)
        label, index, logits = (None if x is None else x[:count] for x in rest)
        return Batch(self.input[:count], label, index, logits, of)
