"""Columns of vectors that are categories: blocks of values of which one is 1 and the others 0."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Groups = tuple[tuple[int, int], ...]


class Column(NamedTuple):
    """What a column of a table says.

    Args:
        name: in the header.
        low, high: the numbers that become 0 and 1.
        categories: in the order of their values; none for numbers.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many values of a vector it takes."""
        return len(self.categories) or 1


def columns_of(columns: Any, shape: Sequence[int] | None = None) -> tuple[Column, ...]:
    """Columns as an input's specification holds them, from any lists.

    Raises:
        ValueError: for anything but columns that make up a vector.
    """
    try:
        found = tuple(Column(n, low, high, tuple(c)) for n, low, high, c in columns)
    except (TypeError, ValueError):
        found = ()
    if columns and shape and sum(column.width for column in found) != shape[0]:
        raise ValueError(f"columns of a vector {list(shape)} cannot be {columns!r:.80}")
    return found


def checked(groups: Any, shape: Sequence[int]) -> Groups:
    """Blocks [start, end) of columns, as an input's specification holds them.

    Raises:
        ValueError: for anything but ascending blocks within a vector.
    """
    if not groups:
        return ()
    try:
        found = tuple((start, end) for start, end in groups)
        ends = [0, *itertools.chain.from_iterable(found), *shape[:1]]
        whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
        right = whole and ends == sorted(ends) and all(start < end for start, end in found)
    except (TypeError, ValueError):
        right = False
    if not right or len(shape) != 1:
        raise ValueError(
            f"groups are ascending blocks [[start, end], ...] of the columns of a vector, but for "
            f"the shape {list(shape)} they are {groups!r:.80}"
        )
    return found


def parts(x: Tensor, groups: Groups) -> list[tuple[Tensor, bool]]:
    """Columns of [B, D] in order: each block, and what is between two, with whether it is one."""
    ends = [0, *itertools.chain.from_iterable(groups), x.shape[1]]
    pieces = x.split([b - a for a, b in itertools.pairwise(ends)], dim=1)
    return [(piece, bool(i % 2)) for i, piece in enumerate(pieces)]


def relaxed(x: Tensor, groups: Groups) -> Tensor:
    """Logits [B, D] as values in 0..1: sigmoids, and for each block a softmax."""
    if not groups:
        return x.sigmoid()
    return torch.cat([p.softmax(1) if one else p.sigmoid() for p, one in parts(x, groups)], dim=1)


def blocks_of(blocks: Tensor, others: Tensor, groups: Groups) -> Tensor:
    """Values [B, D] whose blocks are those of one tensor and whose other columns of another."""
    pairs = zip(parts(blocks, groups), parts(others, groups), strict=True)
    return torch.cat([mine if one else other for (mine, one), (other, _) in pairs], dim=1)
