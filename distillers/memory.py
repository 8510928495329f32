"""What a network answered earlier, as the teacher of what it answers now."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.memory import check_memory
from core.runtime import Runtime
from data.dataset import Dataset
from distillers.step import Ref, Step, Teacher
from models.classifier import Outputs


class Memory(Teacher):
    """For each training input, the prediction softmax(z) made when it was last seen, as log p.

    PS-KD (Kim et al., ICCV 2021): an epoch's teacher is the network of the epoch before it, on the
    inputs as they were augmented then. An input that was not seen yet has its label's one-hot
    vector for a prediction. Probabilities below 1e-38 are raised to that, so that logits are finite
    and any loss can read them; a loss sees the probabilities p^(1/τ), normalised, at temperature τ.

    An input is found by ``batch.index``, at every view alike. A step reads before it writes, so
    what it reads is of an earlier epoch. Inputs that an epoch leaves out keep what they have. Under
    DDP every rank holds the predictions of all.

    Args:
        data: gives the number of training inputs.
        num_classes: C.
        runtime: gathers over ranks.
        of: the name of what is remembered, ``NAME`` or ``NAME@VIEW``.

    Attributes:
        table: [N, C] float32, zero for inputs not seen; a part of the state.

    Raises:
        ValueError: in a data-free run, for more than the machine's memory, and when called with
            inputs that have no index.
    """

    needs_label = True
    needs_index = True
    table: Tensor

    def __init__(
        self, data: Dataset, num_classes: int, runtime: Runtime, of: str = "student"
    ) -> None:
        super().__init__()
        self.of, self.runtime = (of,), runtime
        rows = len(data.open("train"))
        advice = "choose a method that remembers none, or fewer classes"
        check_memory(4 * rows * num_classes, f"the predictions on {rows} inputs", advice)
        self.register_buffer("table", torch.zeros(rows, num_classes))

    def forward(self, step: Step, view: str) -> Outputs:
        label = step.batch.label
        assert label is not None
        rows = self.table[_index(step)]
        classes = torch.arange(rows.shape[1], device=rows.device)
        one_hot = (label[:, None] == classes).to(rows.dtype)
        seen = rows.sum(dim=1, keepdim=True) > 0
        p = torch.where(seen, rows, one_hot)
        return Outputs(p.clamp_min(torch.finfo(p.dtype).tiny).log())

    @torch.no_grad()
    def record(self, step: Step) -> None:
        ref = Ref.parse(self.of[0])
        p = F.softmax(step.answer(ref.name, ref.view).logits, dim=1).to(self.table.dtype)
        index, p = self.runtime.gather(_index(step)), self.runtime.gather(p)
        self.table.index_copy_(0, index, p)


def _index(step: Step) -> Tensor:
    if step.batch.index is None:
        raise ValueError(
            "a memory finds an input by batch.index, which this source does not give: use "
            "data.source.RealSource"
        )
    return step.batch.index
