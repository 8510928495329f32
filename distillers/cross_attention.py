"""A transfer loss by attention of the student's places to the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.adapters import Adapter
from distillers.base import Side, Taps, TransferLoss
from distillers.channel import check_places
from distillers.connector import maps
from models.classifier import Outputs


class CanKD(TransferLoss):
    """Σ_taps ½·mean (IN(z_s) − IN(F_t))², z_s = F_s + BN(W(A·g(F_t))), A = θ(F_s)ᵀφ(F_t) / N.

    Cross-attention-based non-local distillation (Sun and Ohyama, 2025). θ, φ, g are 1×1
    convolutions to half the channels; φ and g end in 2×2 max-pooling to N places; there is no
    softmax. BN starts with scale and shift 0, so that the loss starts as the mean square of
    instance-normalised maps (IN: mean 0, biased variance 1 per input and channel, ε 1e-5). BN's
    shift is the authors' and changes nothing, for IN removes it; so would a bias of W, left out
    here. Where channels differ, a 1×1 convolution brings the student's to the teacher's; of two
    maps the larger is average-pooled to the smaller.

    Args:
        taps: maps [B, C, H, W] or tokens.

    Raises:
        ValueError: for maps of a single place, which instance normalisation makes 0.
    """

    def __init__(self, taps: Taps = ("stage-1",)) -> None:
        super().__init__(taps)
        self.adapters = nn.ModuleList()
        self.attentions = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        for pair in self.pairs(student.outputs, teacher.outputs):
            s, t = maps(*pair)
            check_places(s, "CanKD")
            self.adapters.append(Adapter(s, t))
            self.attentions.append(CrossAttention(t.shape[1]))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        modules = zip(self.adapters, self.attentions, strict=True)
        for (adapter, attend), pair in zip(modules, self.pairs(student, teacher), strict=True):
            s, t = adapter(*maps(*pair))
            losses.append(F.mse_loss(F.instance_norm(attend(s, t)), F.instance_norm(t)) / 2)
        return torch.stack(losses).sum()


class CrossAttention(nn.Module):
    """z_s [B, C, H, W] of CanKD, from a student's and a teacher's map of that shape.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.output = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        window = [min(2, side) for side in teacher.shape[2:]]
        key, value = (
            F.max_pool2d(convolve(teacher), window).flatten(2) for convolve in (self.phi, self.g)
        )
        attention = self.theta(student).flatten(2).transpose(1, 2) @ key / key.shape[2]
        seen = (value @ attention.transpose(1, 2)).unflatten(2, student.shape[2:])
        return student + self.norm(self.output(seen))
