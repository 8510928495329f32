"""Real data as a source, for training on labels and for distillation with data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.objective import Losses
from core.runtime import Runtime
from data.augment import Augmentation, through
from data.dataset import Dataset
from data.pairs import Alike, Pair, checked
from data.spec import Batch

CHOICE_SEED = 0  # of the rows that a limit leaves


class RealSource:
    """Endless epochs over the training split, each in a new order.

    The order of an epoch depends on (seed, epoch) alone, and every rank takes its own part of it:
    over an epoch no row is seen twice. Rows that do not fill a batch on every rank are left out of
    that epoch; a set smaller than that is split among the ranks whole.

    Args:
        data: its training split is opened here.
        batch_size: of one rank.
        augment: applied in this order, on the device.
        limit: how many training inputs are used, the same ones at every seed and balanced by class
            as far as possible; None means all. It does not limit the teacher's training.
        pairs: further views of each batch, by name: for each input another one of the same class,
            which may be the same image, or the same input; augmented anew.

    Raises:
        DataFreeError: if the data set's training split is closed.
        ValueError: for fewer training inputs than ranks, a batch size or a limit below 1.
    """

    period = 1

    def __init__(
        self,
        data: Dataset,
        runtime: Runtime,
        batch_size: int,
        augment: Sequence[Augmentation] = (),
        limit: int | None = None,
        pairs: Mapping[str, Pair] | None = None,
    ) -> None:
        self.data = data
        self.runtime = runtime
        self.augment = tuple(augment)
        self.split = data.open("train")
        if limit is not None and limit < 1:
            raise ValueError(f"source.limit must be at least 1, or null for all, but is {limit}")
        self.rows = np.arange(len(self.split))
        if limit is not None:
            self.rows = balanced(self.split.labels.cpu().numpy())[:limit]
        self.batch_size = min(batch_size, len(self.rows) // runtime.world_size)
        if self.batch_size < 1:
            raise ValueError(
                f"{len(self.rows)} training inputs cannot fill batches of {batch_size} on "
                f"{runtime.world_size} process(es): use more data or fewer processes"
            )
        self.pairs = checked(pairs)
        if "same_class" in self.pairs.values():
            rows = torch.from_numpy(self.rows).to(self.split.storage)
            self.alike = Alike(rows, self.split.labels[rows], data.num_classes)
        self.batches_per_epoch = len(self.rows) // (self.batch_size * runtime.world_size)
        self._step = 0
        self._order: tuple[int, Tensor] | None = None
        self._read = 0  # before the checkpoint that was loaded
        self._read_elsewhere = data.real_training_inputs_read

    def next(self) -> Batch:
        epoch, position = divmod(self._step, self.batches_per_epoch)
        start = (position * self.runtime.world_size + self.runtime.rank) * self.batch_size
        index = self._order_of(epoch)[start : start + self.batch_size]
        x, label = self.split.batch(index)
        x = through(self.augment, x, self.runtime.noise("augment", self._step))
        views = {name: self._partner(name, index) for name in self.pairs}
        self._step += 1
        return Batch(x, label, index.to(x.device, non_blocking=True), views=views)

    def _partner(self, name: str, index: Tensor) -> Tensor:
        """The inputs of a view, for those of the batch."""
        noise = self.runtime.noise(f"pair {name}", self._step)
        if self.pairs[name] == "same_class":
            index = self.alike.draw(self.split.labels[index], noise)
        return through(self.augment, self.split.batch(index)[0], noise)

    def learned(self, batch: Batch, losses: Losses) -> None:
        """Every input is seen once an epoch, whatever its loss."""

    def report(self) -> dict[str, Tensor | float]:
        return {}

    def counts(self) -> dict[str, int]:
        read = self._read + self.data.real_training_inputs_read - self._read_elsewhere
        return {
            "images_synthesized": 0,
            "real_training_inputs_read": read,
        }

    def state_dict(self) -> dict[str, Any]:
        read = self.counts()["real_training_inputs_read"]
        return {"step": self._step, "real_training_inputs_read": read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self._read = state["real_training_inputs_read"]
        self._read_elsewhere = self.data.real_training_inputs_read

    def _order_of(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            # not runtime.noise: all ranks need the same order
            generator = np.random.default_rng([self.runtime.seed % 2**32, epoch])
            order = torch.from_numpy(generator.permutation(self.rows))
            self._order = epoch, order.to(self.split.storage)
        return self._order[1]


def balanced(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """A fixed order of all rows, in which every first part is balanced by class."""
    order = np.random.default_rng(CHOICE_SEED).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        turn[rows] = np.arange(len(rows))
    return order[np.argsort(turn[order], kind="stable")]
