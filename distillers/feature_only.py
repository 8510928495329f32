"""Training a backbone by features only, and a classifier on detached features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from distillers.channel import check_head, grid
from distillers.connector import places
from models.classifier import Outputs
from models.features import channels, comparable, to_vector


class FeatureOnly(TransferLoss):
    """Σ_taps mean (P F_s − F_t)², P a learned 1×1 convolution without bias, always.

    Feature distillation without losses on logits (Cooper et al., Logit-Based Losses Limit the
    Effectiveness of Feature Knowledge Distillation, 2025, arXiv:2511.14981). It should be the
    backbone's only loss: use it with :class:`DetachedCrossEntropy`, and without KD. Of two maps the
    larger is average-pooled to the smaller; tokens beside a map become one.

    The paper chooses the teacher's layers by their quality, which ``python -m tools.quality``
    measures; the choice itself is left to ``taps``.

    Args:
        taps: features of any kind; name the teacher's chosen layer in
            ``taps=[{student: stage-1, teacher: PATH}]``.
    """

    def __init__(self, taps: Taps = ("stage-1",)) -> None:
        super().__init__(taps)
        self.projections = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        for s, t in self.pairs(student.outputs, teacher.outputs):
            s, t = comparable(s, t)
            self.projections.append(nn.Conv1d(channels(s), channels(t), 1, bias=False))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for project, pair in zip(self.projections, self.pairs(student, teacher), strict=True):
            s, t = map(places, comparable(*pair))
            losses.append(F.mse_loss(project(s), t))
        return torch.stack(losses).sum()


class DetachedCrossEntropy(TransferLoss):
    """Cross-entropy of the student's last linear layer on a detached feature; batch mean.

    It trains only the classifier, nothing before it (Cooper et al., 2025, arXiv:2511.14981).

    Args:
        taps: one, the feature that the student's last layer reads, or averages and reads.

    Raises:
        ValueError: for a student that does not end in a linear layer on that feature.
    """

    needs_teacher = False
    needs_label = True

    def __init__(self, taps: Taps = ("pooled",)) -> None:
        super().__init__(taps)
        self.teacher_taps = ()
        if len(self.taps) != 1:
            raise ValueError(f"the classifier reads one feature, but taps has {len(self.taps)}")

    def resolve(
        self, student: Mapping[str, str], teacher: Mapping[str, str], **reads: Mapping[str, str]
    ) -> None:
        super().resolve(student, student, **reads)
        self.teacher_taps = ()

    def prepare(self, student: Side, teacher: Side) -> None:
        check_head(student, self.student_taps[0], "student", "the classifier on detached features")
        self.heads = (student.head,)  # a tuple: the student's, no part of the loss's state

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert batch.label is not None
        [head] = self.heads
        assert head is not None
        feature = to_vector(grid(student.features[self.student_taps[0]])).detach()
        return F.cross_entropy(F.linear(feature, head.weight, head.bias), batch.label)
