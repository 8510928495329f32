"""A transfer loss on the teacher's own classifier, applied to the student's feature."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from distillers.channel import check_head, grid
from distillers.connector import places
from models.classifier import Outputs
from models.features import channels, to_vector


class SRRL(TransferLoss):
    """mean (h − f_t)² + ``regression``·mean (W_t h + b_t − t)², h = r(f_s) pooled.

    Softmax regression representation learning (Yang et al., ICLR 2021, with L2 on the logits): the
    feature should match the teacher's, and the teacher's frozen classifier (W_t, b_t) should turn
    it into the teacher's logits t. The learned connector r is a 1×1 convolution without bias,
    BatchNorm and, where the teacher's feature is never negative in the dry pass, a rectifier. Use
    it with the cross-entropy of the labels.

    Both weights of 1 come from reimplementations that compare methods, not from the paper. The
    authors connect the map and then average it; by default this is what is averaged already, as in
    those reimplementations, and ``taps=[stage-1]`` gives the authors' order.

    Args:
        taps: one, the vector [B, D] that the teacher's last linear layer reads, or the map or
            tokens whose average that is.
        regression: weight of the logits beside the feature.

    Raises:
        ValueError: for a negative weight, more than one tap, or one that the teacher's last linear
            layer does not read.
    """

    def __init__(self, taps: Taps = ("pooled",), regression: float = 1.0) -> None:
        super().__init__(taps)
        if regression < 0:
            raise ValueError(f"regression is a weight, at least 0, but is {regression}")
        if len(self.taps) != 1:
            raise ValueError(f"SRRL reads one tap, but has {len(self.taps)}: give taps=[NAME]")
        self.regression = regression
        self.connector: nn.Module = nn.Identity()

    def prepare(self, student: Side, teacher: Side) -> None:
        [(s, t)] = self.pairs(student.outputs, teacher.outputs)
        check_head(teacher, self.teacher_taps[0], "teacher", "SRRL")
        self.heads = (teacher.head,)  # a tuple: no part of the loss's state
        width = channels(t)
        layers = nn.Conv1d(channels(s), width, 1, bias=False), nn.BatchNorm1d(width)
        self.connector = nn.Sequential(
            *layers, nn.ReLU() if bool((t >= 0).all()) else nn.Identity()
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        [(s, t)] = self.pairs(student, teacher)
        [head] = self.heads
        assert head is not None
        connected = self.connector(places(grid(s))).mean(dim=2)
        bias = None if head.bias is None else head.bias.detach()  # of a peer, it would learn
        said = F.linear(connected, head.weight.detach(), bias)
        regressed = F.mse_loss(said, teacher.logits)
        return F.mse_loss(connected, to_vector(grid(t))) + self.regression * regressed
