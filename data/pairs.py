"""Views that belong to a batch's inputs: another one of the same class, or the same once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHUFFLE = 1  # sets its draws apart from those of an epoch's order
Pair = Literal["same_class", "same_input", "shuffled"]
PAIRED = "paired"  # the view at which a loss across modalities asks its teacher, if not the input


def checked(
    pairs: Mapping[str, Pair] | None, known: Sequence[Pair] = get_args(Pair)
) -> dict[str, Pair]:
    """The pairs of a source, by the names of their views.

    Args:
        known: the kinds that it can make.

    Raises:
        ValueError: for another kind.
    """
    found = dict(pairs or {})
    if unknown := set(found.values()) - set(known):
        raise ValueError(
            f"source.pairs: no {', '.join(sorted(unknown))}; there is: {', '.join(known)}"
        )
    return found


def shuffled(rows: NDArray[np.int64], count: int, seed: int) -> Tensor:
    """For each of ``count`` rows another one of ``rows``: a permutation of these, by the seed."""
    other = np.arange(count)
    other[rows] = np.random.default_rng([seed % 2**32, SHUFFLE]).permutation(rows)
    return torch.from_numpy(other)


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
        """For each label [B] a row of that class, each as likely as any other.

        Of a class without any row it is a row of another class; see :meth:`has`.
        """
        here = torch.Generator(labels.device).manual_seed(noise.initial_seed())
        u = torch.rand(labels.shape, generator=here, device=labels.device, dtype=torch.float64)
        place = self.starts[labels] + (u * self.counts[labels]).long()
        return self.order[place.clamp(max=len(self.order) - 1)]

    def has(self, labels: Tensor) -> Tensor:
        """[B] whether there is a row of each label's class."""
        return self.counts[labels] > 0
