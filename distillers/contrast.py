"""Contrast between classes: both networks' embeddings together within a class, apart otherwise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.functional import supervised_contrast
from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from models.classifier import Outputs
from models.features import channels, to_vector
from models.layers import projection_head


class SupervisedContrast(TransferLoss):
    """Σ_taps L_SCL of CPSC-DFKD (Shao et al., Pattern Recognition 2023), for the student.

    The student's and the teacher's feature on an input are two views of it, and SupCon
    (:func:`supervised_contrast`) draws views of one class together, by ``batch.label``. Each
    network has a projection head of its own, since their features differ in size; both are trained
    beside the student. In the authors' code the generator minimises this, on features as they are:
    see :class:`generators.contrast.ClassContrast`.

    Args:
        taps: features [B, D]; of maps and tokens the average is taken.
        temperature: τ > 0.
        width: of the projections.

    Raises:
        ValueError: for a temperature or a width that is not positive.
    """

    needs_label = True
    needs_instance = False  # views of one class are drawn together, of whatever inputs

    def __init__(
        self, taps: Taps = ("pooled",), temperature: float = 0.07, width: int = 128
    ) -> None:
        super().__init__(taps)
        if temperature <= 0 or width < 1:
            raise ValueError("supervised contrast needs temperature and width above 0")
        self.temperature, self.width = temperature, width
        self.heads = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        for pair in self.pairs(student.outputs, teacher.outputs):
            heads = (projection_head(channels(feature), self.width) for feature in pair)
            self.heads.append(nn.ModuleList(heads))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert batch.label is not None
        losses = []
        for heads, pair in zip(self.heads, self.pairs(student, teacher), strict=True):
            s, t = (head(to_vector(x)) for head, x in zip(heads, pair, strict=True))  # type: ignore[call-overload]
            losses.append(supervised_contrast(s, t, batch.label, self.temperature))
        return torch.stack(losses).sum()
