"""Modalities: what is particular to images, signals, vectors and texts, each in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from data.spec import InputSpec

MODALITIES: dict[str, Modality] = {}
COMPOSED: list[Callable[[str], Modality | None]] = []  # make modalities whose names describe them


class Modality:
    """A kind of input: the layout of its arrays, how they are stored, and how they are shown.

    One of your own is a subclass with a ``name``: from its definition on, data sets and
    :class:`data.spec.InputSpec` know it. A teacher's file holds the name only, as plain text.

    Attributes:
        name: in files and configurations.
        plural: what several inputs are called in messages.
        layout: of one input, in messages.
        rank: of one input; its first axis is that of the channels.
        places: which axes are places, over which a convolution would move; none if there is no
            neighbourhood.
        natural: smallest and largest value of stored inputs.
        storage: in which synthesized inputs are kept. Integers of 8 or 16 bits take their whole
            range for ``natural``.
        synthesized: whether a run without data can make such inputs.
        discrete: whether values are choices, such as words, with nothing between them. Such inputs
            have no mean and std: networks see them as they are.
    """

    name: ClassVar[str]
    plural: ClassVar[str]
    layout: ClassVar[str]
    rank: ClassVar[int]
    places: ClassVar[tuple[int, ...]] = ()
    natural: ClassVar[tuple[float, float]] = (0.0, 1.0)
    storage: ClassVar[torch.dtype] = torch.float32
    synthesized: ClassVar[bool] = True
    discrete: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" not in vars(cls):  # each of its objects has a name of its own
            return
        known = MODALITIES.get(cls.name)
        if known is not None and type(known).__module__ != cls.__module__:
            raise TypeError(f"there is a modality called {cls.name!r}: give yours another name")
        MODALITIES[cls.name] = cls()

    def check(self, where: str, arrays: NDArray[Any]) -> None:
        """Check the arrays [N, ...] of a split as a reader returned them.

        Raises:
            ValueError: saying how to convert them. ``where`` begins the message.
        """
        raise NotImplementedError

    def doubt(self, arrays: NDArray[Any]) -> str | None:
        """What a user should be told of arrays that pass the check, if anything."""
        return None

    def tensor(self, arrays: NDArray[Any]) -> Tensor:
        """Checked arrays as [N, *shape], in their own type."""
        raise NotImplementedError

    def array(self, x: Tensor) -> NDArray[Any]:
        """The inverse of :meth:`tensor`: stored inputs as a file holds them."""
        return x.numpy()

    def shape(self, stored: Sequence[int], words: Sequence[str]) -> tuple[int, ...]:
        """Of an input that is stored with the shape ``stored``, over the vocabulary ``words``."""
        return tuple(stored)

    def vocabulary(self, words: Sequence[str], shape: Sequence[int]) -> tuple[str, ...]:
        """The words of a vocabulary, checked; none for inputs that are no texts.

        Raises:
            ValueError: if inputs of this shape cannot have it.
        """
        if words:
            raise ValueError(f"{self.plural} have no words: leave them out")
        return ()

    def stored(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The inverse of :meth:`shape`."""
        return tuple(shape)

    def decode(self, stored: Tensor, shape: Sequence[int], range: tuple[float, float]) -> Tensor:
        """Stored inputs as float32 [N, *shape] in ``range``, always in memory of their own."""
        return decode(stored, self.natural, range)

    def encode(self, x: Tensor, range: tuple[float, float]) -> Tensor:
        """The inverse: inputs as they are stored, clamped to ``range``."""
        return encode(x, self.storage, self.natural, range)

    def noise(self, size: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """Inputs [size, *shape] that mean nothing, on the host: uniform in the range."""
        low, high = spec.range
        return low + (high - low) * torch.rand(size, *spec.shape, generator=generator)

    def free(self, values: Tensor, spec: InputSpec) -> Tensor:
        """Inputs [B, *shape] of any values of that shape, differentiable: what a generator ends
        in."""
        low, high = spec.range
        return low + (high - low) * values.sigmoid()

    def standard(self, values: Tensor, spec: InputSpec) -> Tensor:
        """Inputs of values that, as normalised inputs do, have about zero mean and unit variance;
        differentiable. Some may leave the range."""
        return spec.denormalize(values)

    def limits(self, values: Tensor, spec: InputSpec) -> tuple[Tensor, Tensor] | None:
        """The smallest and largest values [1, *shape] whose :meth:`standard` lies in the range;
        None if that of any values does."""
        low, high = (torch.full_like(values[:1], end) for end in spec.range)
        return spec.normalize(low), spec.normalize(high)

    def fit(self, x: Tensor, size: int | None) -> Tensor:
        """Stored inputs [N, *shape] brought to ``data.size``; None leaves them alone.

        Raises:
            ValueError: if these have no size.
        """
        if size is None:
            return x
        raise ValueError(f"data.size does not apply to {self.plural}: leave it out")

    def blank(self, range: tuple[float, float]) -> float:
        """The value of a place where there is nothing, as beside a shifted input."""
        return range[0]

    def picture(self, x: Tensor, spec: InputSpec) -> Tensor:
        """A picture [3, H, W] in [0, 1], at most 1200 pixels wide and high, of the first inputs.

        Args:
            x: [N, *shape] in the range of ``spec``, on the host.
        """
        raise NotImplementedError

    def sound(self, x: Tensor, spec: InputSpec) -> Tensor | None:
        """Samples [1, L] in [-1, 1] of the first inputs to listen to, at ``spec.rate``; or None."""
        return None

    def text(self, x: Tensor, spec: InputSpec) -> str | None:
        """The first inputs as lines to read; or None."""
        return None


def modality_named(name: str) -> Modality:
    """The modality of a name.

    Raises:
        ValueError: if there is none, naming those that there are.
    """
    if name not in MODALITIES:
        for make in COMPOSED:
            if (made := make(name)) is not None:
                return MODALITIES.setdefault(name, made)
        raise ValueError(
            f"there is no modality {name!r}, only {', '.join(MODALITIES)}: one of your own is "
            "known once the module that defines it is imported, as by data.dataset._target_"
        )
    return MODALITIES[name]


def usual(rank: int) -> str:
    """The name of the modality whose inputs usually have a rank.

    Raises:
        ValueError: for a rank that no built-in modality has.
    """
    names = {known.rank: known.name for known in (MODALITIES[name] for name in USUAL)}
    if rank not in names:
        raise ValueError(f"inputs of {rank} axes belong to no modality: name theirs")
    return names[rank]


def require(spec: InputSpec, names: Iterable[str], part: str, instead: str) -> None:
    """Refuse a modality that a part does not know.

    Args:
        names: of those that it knows.
        part: what it is called.
        instead: what to do.

    Raises:
        ValueError: if the modality of ``spec`` is another.
    """
    if spec.modality not in names:
        known = " and ".join(modality_named(name).plural for name in names)
        kind = modality_named(spec.modality)
        raise ValueError(
            f"{part} is for {known}, but the inputs are {kind.plural} {list(spec.shape)}: {instead}"
        )


def require_amounts(spec: InputSpec, part: str, instead: str) -> None:
    """Refuse inputs whose values are choices, for a part that moves them a little.

    Args:
        part: what it is called.
        instead: what to do.

    Raises:
        ValueError: for such inputs.
    """
    if spec.kind.discrete:
        raise ValueError(
            f"{part} moves inputs a little, but there is nothing between {spec.kind.plural}: "
            f"{instead}"
        )


def decode(stored: Tensor, natural: tuple[float, float], range: tuple[float, float]) -> Tensor:
    """Stored values as float32 in ``range``, always in memory of their own.

    Eight bits run from ``range[0]`` to ``range[1]``. Sixteen bits are -32768 to 32767, of which
    -32768 is ``range[0]`` and 0 the middle. Others are mapped from ``natural``.
    """
    low, high = range
    layout = torch.channels_last if stored.dim() == 4 else torch.contiguous_format
    if stored.dtype == torch.uint8:
        x = stored.to(torch.float32, memory_format=layout)
        return x.mul_((high - low) / 255).add_(low)
    if stored.dtype == torch.int16:
        return stored.to(torch.float32).mul_((high - low) / 65536).add_((low + high) / 2)
    x = stored.to(torch.float32, memory_format=layout, copy=True)
    if range == natural:
        return x
    return x.sub_(natural[0]).mul_((high - low) / (natural[1] - natural[0])).add_(low)


def encode(
    x: Tensor, storage: torch.dtype, natural: tuple[float, float], range: tuple[float, float]
) -> Tensor:
    """The inverse of :func:`decode`, for values that are clamped to ``range`` first."""
    low, high = range
    x = x.detach()
    if storage == torch.uint8:
        return ((x - low) * (255 / (high - low))).round().clamp(0, 255).to(storage)
    if storage == torch.int16:
        centred = (x - (low + high) / 2) * (65536 / (high - low))
        return centred.round().clamp(-32768, 32767).to(storage)
    x = x.clamp(low, high)
    if range != natural:
        x = (x - low) * ((natural[1] - natural[0]) / (high - low)) + natural[0]
    return x.to(storage)


def as_float(x: Tensor) -> Tensor:
    """[N, ...] in float32 on the host, detached."""
    return x.detach().float().cpu()


def labels_of(labels: NDArray[np.integer] | None) -> Tensor | None:
    """[N] int64."""
    return None if labels is None else torch.from_numpy(labels.astype(np.int64))


USUAL = ("image", "signal", "vector")  # what an input is, by its axes, where nothing is said
