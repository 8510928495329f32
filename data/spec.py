"""What passes between a source, a teacher and a student."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from data import images, signals, vectors  # noqa: F401 (they are known once they are defined)
from data.categories import Groups, checked, projected, relaxed
from data.modality import BUILT_IN, Modality, decode, encode, modality_named, usual

# Of the largest value. No inputs spread wider than half their range, but networks that take values
# as they are have a std of 1; values in 0..255 have one of 50 or more.
WIDEST_STD = 5.0
EXPECTED = ("shape", "range", "mean", "std", "classes")
LARGEST = 3e38  # of float32, in which networks compute


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of its input; it travels with a teacher's checkpoint.

    Args:
        shape: of one input, channels first, such as ``(3, 32, 32)``.
        range: smallest and largest value of an input before normalisation.
        mean: one value per channel, in units of the range.
        std: one value per channel, in units of the range.
        modality: what kind of input it is; by default image, signal or vector, by the number of
            axes.
        rate: samples in a second, of signals where it is known.
        groups: of vectors, [start, end) of columns that are one category each: at each input one of
            them is 1 and the others are 0, or they are shares that sum to 1.

    Raises:
        ValueError: if the parts are not such numbers, or do not fit together.
    """

    shape: tuple[int, ...]
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    modality: str = ""
    rate: float | None = None
    groups: Groups = ()

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
        channels = self.shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"mean and std need one value for each of the {channels} channel(s), "
                f"but have {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, but is {self.std}")
        self._check_scale()
        object.__setattr__(self, "groups", checked(self.groups, self.shape))

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
        mean, std = _moments(self, x.device, x.dtype)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`: back to values in units of ``range``."""
        mean, std = _moments(self, x.device, x.dtype)
        return x * std + mean

    def squash(self, x: Tensor) -> Tensor:
        """Any values [B, *shape] as inputs in ``range``: by a sigmoid, in groups by a softmax."""
        low, high = self.range
        return low + (high - low) * relaxed(x, self.groups)

    def nearest(self, x: Tensor) -> Tensor:
        """Values [B, *shape] in units of the range as the inputs nearest to them: clamped to
        ``range``, and in groups projected on shares that sum to 1."""
        low, high = self.range
        if self.groups:
            x = low + (high - low) * projected((x - low) / (high - low), self.groups)
        return x.clamp(low, high)

    def encode(self, x: Tensor) -> Tensor:
        """Inputs [B, *shape] as their modality stores them, clamped to ``range``."""
        return encode(x, self.kind.storage, self.kind.natural, self.range)

    def decode(self, stored: Tensor) -> Tensor:
        """The inverse: stored inputs as float32 in ``range``."""
        return decode(stored, self.kind.natural, self.range)

    def noise(self, size: int, device: torch.device) -> Tensor:
        """[size, *shape], uniform in ``range`` and always the same, for a look at a network."""
        low, high = self.range
        x = torch.rand(size, *self.shape, generator=torch.Generator().manual_seed(0))
        return (low + (high - low) * x).to(device)

    @property
    def kind(self) -> Modality:
        """The modality itself."""
        return modality_named(self.modality)

    def to_dict(self) -> dict[str, Any]:
        """Its values, without a modality that the number of axes tells, and what there is not."""
        values = asdict(self)
        if self.modality in BUILT_IN:
            del values["modality"]
        if self.rate is None:
            del values["rate"]
        if not self.groups:
            del values["groups"]
        return values


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
        more = [name for name in ("modality", "rate", "groups") if name in self.values]
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
    """

    input: Tensor
    label: Tensor | None = None
    index: Tensor | None = None
    teacher_logits: Tensor | None = None
    views: Mapping[str, Tensor] = field(default_factory=dict)
