"""Finding the logits in what a network returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

NAMES = (
    "logits",
    "out",
    "output",
    "outputs",
    "predictions",
)  # in a mapping, the first one present


def logits_of(output: Any, classes: int = 0, name: str = "the network") -> Tensor:
    """The logits [B, C] in what a network returns.

    A tensor is taken as it is. An object's ``logits`` are taken (torchvision's
    ``GoogLeNetOutputs``, ``transformers``' ``ModelOutput``, any dataclass), a mapping's entry of a
    name in ``NAMES``, and of a tuple or list the first tensor that is shaped like logits; so the
    auxiliary logits and the features beside them are not read.

    Args:
        classes: C, where it is known; 0 takes any tensor [B, C].
        name: of the network, for the message.

    Raises:
        ValueError: if there are none, saying what there is.
    """
    if isinstance(output, Tensor):
        return output
    found = named_logits(output)
    if found is None:
        found = next(iter(candidates(output, classes)), None)
    if found is None:
        raise ValueError(
            f"{name} returns {in_words(output)}, in which no logits [B, {classes or 'C'}] are "
            "found: return them alone, first in a tuple, or under the name logits"
        )
    return found


def named_logits(output: Any) -> Tensor | None:
    """The logits that have a name, or None."""
    named = getattr(output, "logits", None)
    if named is None and isinstance(output, Mapping):
        named = next((output[name] for name in NAMES if name in output), None)
    return named if isinstance(named, Tensor) else None


def candidates(output: Any, classes: int) -> list[Tensor]:
    """Tensors [B, C] in a tuple or a list, or the values of a mapping."""
    values = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [v for v in values if isinstance(v, Tensor) and v.dim() == 2 and _like(v, classes)]


def _like(x: Tensor, classes: int) -> bool:
    return x.is_floating_point() and x.shape[1] == (classes or x.shape[1])


def in_words(output: Any) -> str:
    """What a network returned, in a few words: its type, and the shapes of the tensors in it."""
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"a tensor of shape {_shape(output)}"
    if isinstance(output, Mapping):
        parts = [f"{name}: {_shape(value)}" for name, value in output.items()]
    elif isinstance(output, Sequence) and not isinstance(output, str):
        parts = [_shape(value) for value in output]
    else:
        return f"an object of type {kind}"
    more = ", ..." if len(parts) > 6 else ""
    return f"a {kind} of ({', '.join(parts[:6])}{more})"


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "scalar"
    return type(value).__name__
