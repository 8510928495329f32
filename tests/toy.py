"""A transfer loss with a parameter of its own, as VID's variance is one."""

import torch
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import TransferLoss
from models.classifier import Outputs


class LearnedScale(TransferLoss):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return (student.logits - teacher.logits).square().mean() * self.scale.exp() - self.scale
