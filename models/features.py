"""Converts features of two networks to one kind and one size, without parameters.

A feature is a map [B, C, H, W], tokens [B, N, D] or a vector [B, D].
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

PREFIXES = (0, 1, 2, 4, 5)  # class, distillation and register tokens before the grid


def comparable(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two features converted to one kind and one size; channels stay as they are."""
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
        ValueError: if the tokens are not a square grid, or the feature is a vector.
    """
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        side = math.isqrt(x.shape[1])
        if x.shape[1] - side * side in PREFIXES:
            return x[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(
        f"the loss reads maps [C, H, W] or a square of tokens, but a tap gives "
        f"{list(x.shape[1:])}: choose another"
    )


def to_tokens(x: Tensor) -> Tensor:
    """[B, N, D] of tokens, or of a map [B, C, H, W] with N = H·W and D = C."""
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


def to_vector(x: Tensor) -> Tensor:
    """[B, D]: the average over places or tokens; a vector stays."""
    return x if x.dim() == 2 else to_tokens(x).mean(dim=1)
