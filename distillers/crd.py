"""Contrastive representation distillation with a memory of both networks' embeddings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.dataset import DataFreeError, Dataset
from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from models.classifier import Outputs
from models.features import channels, to_vector

UNSEEN = -1  # the label of an entry that no input has written yet


class CRD(TransferLoss):
    """Σ_taps of NCE from student to teacher and back: −mean_i [ log h⁺ + K·mean_m log(1 − h_m) ].

    Contrastive Representation Distillation (Tian et al., ICLR 2020). h = r / (r + K) with
    r = exp(z·m/τ) / mean exp(z·m/τ), where z is one network's embedding of an input and m is an
    entry in a memory of the other's: for h⁺ that of the same input, for h_m those of other
    classes. The mean in r is the authors' Z without the number of entries, which cancels; it is
    measured on the first batch.

    The authors draw K entries for each input. Here their expectation over all possible draws is
    computed: a matrix product gives every score, costs about as much as drawing and gathering K of
    them, has no sampling noise, and gives the same bits every time on a GPU.

    The memory takes either of two forms. With real data of at most ``capacity`` inputs each has an
    entry, found by ``batch.index``, which follows its embedding with ``momentum``, and an input's
    positive is its entry from before this step. Larger sets, and synthesized inputs, which come
    once, have a queue of the latest K inputs; the positive is then the other network's present
    embedding. Both are part of the loss's state. Under DDP each rank remembers its own inputs.

    Args:
        data: gives the number of inputs, if the run may read them.
        taps: vectors [B, D]; of maps and tokens the average is taken.
        temperature: τ > 0.
        negatives: K, at least 1.
        momentum: of an entry, in [0, 1).
        width: of the embeddings, which are linear.
        capacity: the most entries that a memory has for a set of real data.
        negatives_of: the paper's other classes, or, where there are no labels, all other inputs.

    Raises:
        ValueError: for an argument out of range, or, when called, for real data without indices.
    """

    def __init__(
        self,
        data: Dataset,
        taps: Taps = ("pooled",),
        temperature: float = 0.07,
        negatives: int = 16384,
        momentum: float = 0.5,
        width: int = 128,
        capacity: int = 65536,
        negatives_of: Literal["class", "input"] = "class",
    ) -> None:
        super().__init__(taps)
        if temperature <= 0 or min(negatives, width) < 1 or not 0 <= momentum < 1:
            raise ValueError(
                "CRD needs temperature above 0, negatives and width of at least 1 and momentum in "
                f"[0, 1), but has {temperature}, {negatives}, {width} and {momentum}"
            )
        self.temperature, self.negatives = float(temperature), negatives
        self.momentum, self.width = float(momentum), width
        self.needs_label = negatives_of == "class"
        self.rows = lasting_rows(data, capacity)
        self.contrasts = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        for s, t in self.pairs(student.outputs, teacher.outputs):
            queue = not self.rows
            memory = Memory(self.rows or self.negatives, self.width, self.momentum, queue)
            heads = (nn.Linear(channels(x), self.width) for x in (s, t))
            self.contrasts.append(Contrast(heads, memory, self.temperature, self.negatives))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        which = batch.label if self.needs_label else batch.index
        if which is None:
            raise ValueError(
                "CRD with negatives_of=input tells inputs apart by batch.index, which this source "
                "does not give: use one that does, or negatives_of=class"
            )
        if not self.needs_label:
            batch = dataclasses.replace(batch, label=which)
        both = zip(self.contrasts, self.pairs(student, teacher), strict=True)
        return torch.stack([one(to_vector(s), to_vector(t), batch) for one, (s, t) in both]).sum()


class Contrast(nn.Module):
    """CRD at one tap.

    Args:
        heads: of the student and of the teacher, to one width.
        memory: of that width.
        temperature: τ.
        negatives: K.

    Attributes:
        log_mean: of the scores' exponentials, for each network; from the first batch.
    """

    log_mean: Tensor

    def __init__(
        self, heads: Iterable[nn.Module], memory: Memory, temperature: float, negatives: int
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.memory = memory
        self.temperature, self.negatives = temperature, negatives
        self.register_buffer("log_mean", torch.zeros(2))

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        assert batch.label is not None
        features = zip(self.heads, (student, teacher), strict=True)
        z = torch.stack([F.normalize(head(x), dim=1) for head, x in features])
        first = not self.memory.written
        partners = self.memory.exchange(z.detach().flip(0), batch.label, batch.index)
        entries, labels = self.memory.entries()
        near = (z * partners).sum(dim=2) / self.temperature
        far = (z / self.temperature) @ entries.transpose(1, 2)
        allowed = labels != batch.label[:, None]
        if self.memory.written >= labels.numel():  # what is unseen by now, such as what has no
            allowed = allowed & (labels != UNSEEN)  # label, never comes, and is noise
        if first:
            detached = near.detach(), far.detach()
            self.log_mean.copy_(measure_log_mean(*detached, allowed, self.negatives))
        return nce(near, far, allowed, self.log_mean, self.negatives).sum()


class Memory(nn.Module):
    """Both networks' embeddings of earlier inputs, to compare each with the other's.

    Args:
        size: how many entries.
        width: of an embedding.
        momentum: an entry becomes momentum·m + (1 − momentum)·z, normalised.
        queue: whether entries are those of the latest inputs, rather than of fixed ones.

    Attributes:
        embeddings: [2, size, width], the teacher's and the student's; at first random and of length
            about 1, as in the authors' code.
        labels: [size].
        written: how many inputs have come so far.
    """

    embeddings: Tensor
    labels: Tensor

    def __init__(self, size: int, width: int, momentum: float, queue: bool) -> None:
        super().__init__()
        self.momentum, self.queue, self.written = momentum, queue, 0
        bound = math.sqrt(3 / width)
        self.register_buffer("embeddings", torch.empty(2, size, width).uniform_(-bound, bound))
        self.register_buffer("labels", torch.full((size,), UNSEEN))

    def exchange(self, z: Tensor, label: Tensor, index: Tensor | None) -> Tensor:
        """Write embeddings [2, B, width], in the order of the entries; returns the positives."""
        size, start = len(self.labels), self.written
        self.written += len(label)
        if self.queue:  # if there are more than entries, the last ones
            slots = torch.arange(start, self.written, device=label.device)[-size:] % size
            self.embeddings.index_copy_(1, slots, z[:, -size:])
            self.labels.index_copy_(0, slots, label[-size:])
            return z
        if index is None:
            raise ValueError(
                "CRD finds an input's entry by batch.index, which this source does not give: use a "
                "source that does, or capacity=0 for a queue"
            )
        before = self.embeddings[:, index]
        after = F.normalize(self.momentum * before + (1 - self.momentum) * z, dim=2)
        self.embeddings.index_copy_(1, index, after)
        self.labels.index_copy_(0, index, label)
        return before

    def entries(self) -> tuple[Tensor, Tensor]:
        """Embeddings [2, M, width] and labels [M] of all entries."""
        if not self.queue:
            return self.embeddings, self.labels
        return self.embeddings[:, : self.written], self.labels[: self.written]

    def get_extra_state(self) -> dict[str, int]:
        return {"written": self.written}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.written = state["written"]


def nce(positive: Tensor, negative: Tensor, allowed: Tensor, log_mean: Tensor, k: int) -> Tensor:
    """−mean_i [ log h⁺ + K·mean_m log(1 − h_m) ], with h as in :class:`CRD`; [2].

    Args:
        positive: scores [2, B] of each input's positive.
        negative: scores [2, B, M].
        allowed: [B, M], which negatives count; an input with none has only its positive.
        log_mean: [2].
        k: K, how many negatives the mean stands for.
    """
    even = (log_mean + math.log(k))[:, None]  # the score at which h = 1/2
    far = F.logsigmoid(even[..., None] - negative).masked_fill(~allowed, 0).sum(dim=2)
    mean = far / allowed.sum(dim=1).clamp_min(1)
    return -(F.logsigmoid(positive - even) + k * mean).mean(dim=1)


def measure_log_mean(positive: Tensor, negative: Tensor, allowed: Tensor, k: int) -> Tensor:
    """log of the mean of exp(score) over the positives and ``k`` negatives for each; [2].

    The arguments are those of :func:`nce`.
    """
    share = math.log(k) - allowed.sum(dim=1, keepdim=True).clamp_min(1).log()
    negative = (negative + share).masked_fill(~allowed, -torch.inf)
    scores = torch.cat([positive[..., None], negative], dim=-1)
    return scores.flatten(-2).logsumexp(dim=-1) - math.log(len(allowed) * (k + 1))


def lasting_rows(data: Dataset, capacity: int) -> int:
    """How many real training inputs there are; 0 if the run has none, or more than ``capacity``."""
    try:
        rows = len(data.open("train"))
    except DataFreeError:
        return 0
    return rows if rows <= capacity else 0
