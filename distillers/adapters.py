"""Features of two shapes made comparable: channels by a learned projection, sizes by pooling.

A feature is a map [B, C, H, W], tokens [B, N, D] or a vector [B, D].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from distillers.base import TransferTerm
from models.classifier import Outputs

PREFIXES = (0, 1, 2, 4, 5)  # class, distillation and register tokens before the grid


class Adapter(nn.Module):
    """A student's feature brought to a teacher's kind and channels, and both to one size.

    Tokens beside a map become a map, so that a ViT and a CNN compare; beside a vector, a map or
    tokens are averaged to one. Of two maps the larger is average-pooled, side by side, to the
    smaller. Then a 1×1 convolution, or a linear layer on tokens and vectors, takes the student's
    channels to the teacher's.

    Args:
        student: an example of the student's feature.
        teacher: of the teacher's.
        always: project even where the channels agree; otherwise such a pair has no parameters.

    Attributes:
        channels: of the student's feature and of the teacher's.
    """

    def __init__(self, student: Tensor, teacher: Tensor, always: bool = False) -> None:
        super().__init__()
        self.shapes = (tuple(student.shape[1:]), tuple(teacher.shape[1:]))
        student, teacher = comparable(student, teacher)
        self.channels = (channels(student), channels(teacher))
        self.projection: nn.Module = nn.Identity()
        if always or self.channels[0] != self.channels[1]:
            if student.dim() == 4:
                self.projection = nn.Conv2d(*self.channels, 1, bias=False)
            else:
                self.projection = nn.Linear(*self.channels)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both features in one shape: the student's projected, the teacher's at most pooled."""
        student, teacher = comparable(student, teacher)
        return self.projection(student), teacher

    def describe(self) -> str:
        """A line for the log."""
        return describe(*self.shapes, by=str(self.projection))


def describe(student: Sequence[int], teacher: Sequence[int], by: str) -> str:
    """What joins two features of these shapes, without the batch."""
    a, b = ("x".join(map(str, shape)) for shape in (student, teacher))
    return f"student {a} to teacher {b} by {by}"


def adaptations(term: TransferTerm, student: Outputs, teacher: Outputs) -> list[str]:
    """A line for each pair of features of different shapes that a term's layers join.

    Args:
        term: prepared.
        student: outputs with the term's taps.
        teacher: likewise.
    """
    adapters = [module for module in term.modules() if isinstance(module, Adapter)]
    if adapters:
        return [adapter.describe() for adapter in adapters]
    if not term.teacher_taps or not any(True for _ in term.parameters()):
        return []
    pairs = [(s.shape[1:], t.shape[1:]) for s, t in term.pairs(student, teacher)]
    return [describe(s, t, by="the term's own layers") for s, t in pairs if s != t]


def comparable(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two features as one kind and one size; channels stay as they are."""
    if a.dim() == b.dim() == 3 and a.shape[1] == b.shape[1]:
        return a, b
    if 2 in (a.dim(), b.dim()):
        return to_vector(a), to_vector(b)
    a, b = to_map(a), to_map(b)
    height, width = (min(pair) for pair in zip(a.shape[2:], b.shape[2:], strict=True))
    return pool_to(a, (height, width)), pool_to(b, (height, width))


def channels(feature: Tensor) -> int:
    """C of a map, D of tokens and vectors."""
    return feature.shape[1 if feature.dim() == 4 else -1]


def pool_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [B, C, H, W] average-pooled to ``size``, unless it has that size."""
    return x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size)


def to_map(x: Tensor) -> Tensor:
    """[B, C, H, W] of a map or of tokens [B, N, D]: a square grid after any class tokens.

    Raises:
        ValueError: where the tokens are not a square grid, or the feature is a vector.
    """
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        side = math.isqrt(x.shape[1])
        if x.shape[1] - side * side in PREFIXES:
            return x[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(
        f"the term reads maps [C, H, W] or a square of tokens, but a tap gives "
        f"{list(x.shape[1:])}: choose another"
    )


def to_tokens(x: Tensor) -> Tensor:
    """[B, N, D] of tokens, or of a map [B, C, H, W] with N = H·W and D = C."""
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


def to_vector(x: Tensor) -> Tensor:
    """[B, D]: the average over places or tokens; a vector stays."""
    return x if x.dim() == 2 else to_tokens(x).mean(dim=1)
