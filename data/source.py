"""Real data as a source, for training on labels and for distillation with data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from core.objective import Losses
from core.runtime import Runtime
from data.augment import Augmentation, through
from data.dataset import Dataset
from data.pairs import Alike, Pair, checked, shuffled
from data.spec import Batch

LABELLED = 1  # the stream of their orders
CHOICE_SEED = 0  # of the rows that a limit leaves


class Epochs:
    """Endless epochs over rows, each in a new order, in batches of equal size for every rank.

    The order of an epoch depends on the seed, the stream and the epoch alone. Rows that do not fill
    a batch on every rank are left out of that epoch.

    Args:
        rows: int64.
        size: of a rank's batch, at least 1.
        runtime: gives the seed, and this rank's part.
        storage: where the indices are needed.
        stream: sets its orders apart from those of other rows of the run.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        size: int,
        runtime: Runtime,
        storage: torch.device,
        *stream: int,
    ) -> None:
        self.rows, self.size, self.runtime, self.storage = rows, size, runtime, storage
        self.stream = stream
        self.batches = len(rows) // (size * runtime.world_size)
        self._order: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Tensor:
        """The rows [size] of a step."""
        epoch, position = divmod(step, self.batches)
        start = (position * self.runtime.world_size + self.runtime.rank) * self.size
        return self._order_of(epoch)[start : start + self.size]

    def _order_of(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            # not runtime.noise: all ranks need the same order
            generator = np.random.default_rng([self.runtime.seed % 2**32, epoch, *self.stream])
            order = torch.from_numpy(generator.permutation(self.rows))
            self._order = epoch, order.to(self.storage)
        return self._order[1]


class RealSource:
    """Endless epochs over the training split, each in a new order.

    The order of an epoch depends on (seed, epoch) alone, and every rank takes its own part of it:
    over an epoch no row is seen twice. Rows that do not fill a batch on every rank are left out of
    that epoch; a set smaller than that is split among the ranks whole.

    With ``labels``, only that many inputs have a label. They fill a part of every batch, its first
    rows (``Batch.labelled``), in epochs of their own; the rest are inputs without one, whose label
    is given as -1.

    Args:
        data: its training split is opened here.
        batch_size: of one rank.
        augment: applied in this order, on the device.
        limit: how many training inputs are used, the same ones at every seed and balanced by class
            as far as possible; None means all. It does not limit the teacher's training.
        pairs: further views of each batch, by name: for each input another one of the same class,
            which may be the same image, or the same input, or one that a permutation of all assigns
            to it, the same in every epoch; augmented anew.
        labels: how many of the inputs have a label, chosen as ``limit`` chooses; None means all.
        labelled: the largest share of a batch that inputs with a label take, in (0, 1).

    Raises:
        DataFreeError: if the data set's training split is closed.
        ValueError: for fewer training inputs than ranks, a batch size or a limit below 1, more
            labels than inputs, and for pairs of one class where labels are missing.
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
        labels: int | None = None,
        labelled: float = 0.5,
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
        self.labelled = self._labelled(labels, labelled) if labels is not None else None
        first, storage, rest = 0, self.split.storage, self.rows
        if self.labelled:
            first, rest = self.labelled.size, np.setdiff1d(self.rows, self.labelled.rows)
        self.epochs = Epochs(rest, self.batch_size - first, runtime, storage)
        self.batches_per_epoch = self.epochs.batches
        if "same_class" in self.pairs.values():
            rows = torch.from_numpy(self.rows).to(storage)
            self.alike = Alike(rows, self.split.labels[rows], data.num_classes)
        if "shuffled" in self.pairs.values():
            self.others = shuffled(self.rows, len(self.split), runtime.seed).to(storage)
        self._step = 0
        self._read = 0  # before the checkpoint that was loaded
        self._read_elsewhere = data.real_training_inputs_read

    def _labelled(self, labels: int, share: float) -> Epochs:
        """Epochs over the inputs that have a label."""
        least, most = self.runtime.world_size, len(self.rows) - self.batch_size
        if not least <= labels <= most:
            raise ValueError(
                f"source.labels={labels} should be at least {least} and at most {most}, so that "
                f"enough of the {len(self.rows)} training inputs are without; or null for all"
            )
        if not 0 < share < 1 or self.batch_size < 2:
            raise ValueError(
                f"source.labelled={share} should be a share between 0 and 1 of batches of at least "
                "2 inputs"
            )
        if "same_class" in self.pairs.values():
            raise ValueError(
                f"source.labels={labels} leaves inputs without a label, but pairs of the same "
                "class need all: leave it out"
            )
        size = min(max(1, round(share * self.batch_size)), self.batch_size - 1)
        size = min(size, labels // self.runtime.world_size)
        rows = balanced(self.split.labels.cpu().numpy())[:labels]
        return Epochs(rows, size, self.runtime, self.split.storage, LABELLED)

    def next(self) -> Batch:
        index = self.epochs.batch(self._step)
        if self.labelled:
            index = torch.cat([self.labelled.batch(self._step), index])
        x, label = self.split.batch(index)
        x = through(self.augment, x, self.runtime.noise("augment", self._step))
        views = {name: self._partner(name, index) for name in self.pairs}
        self._step += 1
        index = index.to(x.device, non_blocking=True)
        if not self.labelled:
            return Batch(x, label, index, views=views)
        first = self.labelled.size
        if label is not None:
            label = F.pad(label[:first], (0, len(label) - first), value=-1)
        return Batch(x, label, index, views=views, labelled=first)

    def _partner(self, name: str, index: Tensor) -> Tensor:
        """The inputs of a view, for those of the batch."""
        noise = self.runtime.noise(f"pair {name}", self._step)
        if self.pairs[name] == "same_class":
            index = self.alike.draw(self.split.labels[index], noise)
        elif self.pairs[name] == "shuffled":
            index = self.others[index]
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


def balanced(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """A fixed order of all rows, in which every first part is balanced by class."""
    order = np.random.default_rng(CHOICE_SEED).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        turn[rows] = np.arange(len(rows))
    return order[np.argsort(turn[order], kind="stable")]
