"""SimKD: the teacher's classifier, reused by the student."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from distillers.channel import check_head
from models.classifier import Outputs
from models.features import channels, comparable, to_map


class SimKD(TransferLoss):
    """mean (P(F_s) − F_t)², and the student classifies by the teacher's last layer.

    Knowledge distillation with the reused teacher classifier (Chen et al., CVPR 2022). The student
    is a :class:`models.simkd.SimKDStudent`, which has the projector P in it (``student=simkd``).
    Before the first step its classifier becomes the teacher's, frozen. Use this loss alone, without
    labels or KD.

    Of two maps the larger is average-pooled to the smaller. The authors pool a larger student's map
    before P; here P is part of the network and sees the map unpooled.

    Args:
        taps: one, the student's ``projected`` map beside the map [B, C, H, W] that the teacher
            averages for its last linear layer.

    Raises:
        ValueError: for another student, one of another width, or another map of the teacher.
    """

    def __init__(self, taps: Taps = ({"student": "projected", "teacher": "stage-1"},)) -> None:
        super().__init__(taps)
        if len(self.taps) != 1:
            raise ValueError(f"SimKD reads one tap, but has {len(self.taps)}")

    def resolve(
        self, student: Mapping[str, str], teacher: Mapping[str, str], **reads: Mapping[str, str]
    ) -> None:
        if "projected" not in student:
            raise ValueError(
                "SimKD's student has a projector and the teacher's classifier: pass student=simkd "
                "and its backbone as student.model.backbone={_target_: ...}"
            )
        super().resolve(student, teacher, **reads)

    @torch.no_grad()
    def prepare(self, student: Side, teacher: Side) -> None:
        check_head(teacher, self.teacher_taps[0], "teacher", "SimKD")
        [(s, t)] = self.pairs(student.outputs, teacher.outputs)
        if channels(to_map(s)) != channels(to_map(t)):
            raise ValueError(
                f"SimKD's student projects to {channels(to_map(s))} channels, but the teacher's "
                f"last map has {channels(to_map(t))}: pass student.model.features="
                f"{channels(to_map(t))}"
            )
        ours, theirs = student.head, teacher.head
        assert ours is not None
        assert theirs is not None
        ours.weight.copy_(theirs.weight)
        assert ours.bias is not None
        ours.bias.zero_() if theirs.bias is None else ours.bias.copy_(theirs.bias)
        ours.requires_grad_(False)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        [(s, t)] = self.pairs(student, teacher)
        return F.mse_loss(*comparable(to_map(s), to_map(t)))
