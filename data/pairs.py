"""Views that belong to a batch's inputs: another one of the same class, or the same once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

Pair = Literal["same_class", "same_input"]


def checked(pairs: Mapping[str, Pair] | None) -> dict[str, Pair]:
    """The pairs of a source, by the names of their views.

    Raises:
        ValueError: for a kind that does not exist.
    """
    found, known = dict(pairs or {}), get_args(Pair)
    if unknown := set(found.values()) - set(known):
        raise ValueError(
            f"source.pairs: no {', '.join(sorted(unknown))}; there is: {', '.join(known)}"
        )
    return found


class Alike:
    """Rows of the same class.

    Args:
        rows: [N] int64.
        labels: [N] int64 of these rows.
        num_classes: that the labels tell apart.
    """

    def __init__(self, rows: Tensor, labels: Tensor, num_classes: int) -> None:
        self.order = rows[labels.argsort(stable=True)]
        # torch.bincount would wait for the device, to see how many classes there are
        none = labels.new_zeros(num_classes)
        self.counts = none.scatter_add(0, labels, torch.ones_like(labels))
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, labels: Tensor, noise: torch.Generator) -> Tensor:
        """For each label [B] a row of that class, each as likely as any other."""
        here = torch.Generator(labels.device).manual_seed(noise.initial_seed())
        u = torch.rand(labels.shape, generator=here, device=labels.device, dtype=torch.float64)
        return self.order[self.starts[labels] + (u * self.counts[labels]).long()]
