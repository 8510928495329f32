"""Transfer losses on where each channel, or each class, is active."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.adapters import Adapter
from distillers.base import Side, Taps, TransferLoss
from distillers.connector import maps
from distillers.response import positive
from models.classifier import Outputs
from models.features import channels, pool_to, to_map, to_vector


class CWD(TransferLoss):
    """Σ_taps τ²/C · Σ_c KL(φ(F_t,c) ‖ φ(F_s,c)), φ the softmax over places at temperature τ.

    Channel-wise knowledge distillation (Shu et al., ICCV 2021, eq. 3 and 4), batch mean. Where the
    channels differ, a 1×1 convolution brings the student's to the teacher's; of two maps the larger
    is average-pooled to the smaller. The authors take the last features (weight 50) of networks
    for dense prediction, or their logits (weight 3).

    Args:
        taps: maps [B, C, H, W] or tokens.
        temperature: τ > 0.

    Raises:
        ValueError: for a temperature out of range, or maps of a single place.
    """

    def __init__(self, taps: Taps = ("stage-1",), temperature: float = 4.0) -> None:
        super().__init__(taps)
        self.temperature = positive(temperature)
        self.adapters = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        pairs = [maps(s, t) for s, t in self.pairs(student.outputs, teacher.outputs)]
        for s, _ in pairs:
            check_places(s, "CWD")
        self.adapters = nn.ModuleList(Adapter(s, t) for s, t in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for adapter, pair in zip(self.adapters, self.pairs(student, teacher), strict=True):
            s, t = adapter(*maps(*pair))
            log_s, log_t = (self._log_places(x) for x in (s, t))
            losses.append((log_t.exp() * (log_t - log_s)).sum(dim=2).mean())
        return self.temperature**2 * torch.stack(losses).sum()

    def _log_places(self, x: Tensor) -> Tensor:
        """log φ [B, C, N]."""
        return F.log_softmax(x.flatten(2) / self.temperature, dim=2)


class CATKD(TransferLoss):
    """Σ_taps mean (Â_s − Â_t)², Â [B, classes, size²] class-activation maps, pooled and normalised.

    Class attention transfer (Guo et al., CVPR 2023, eq. 3 and 4). A class's map is the head's
    weights applied at each place, A = Σ_c w_c F_c, without the bias. Both networks' are
    average-pooled to ``size`` × ``size``, and scaled to unit L2 norm per class. Only the student is
    trained, its head included.

    The authors' settings for CIFAR-100 go by pair: where the architectures differ they normalise,
    with a weight of 15 to 40 at size 2 and 600 at size 4; where they are alike they do not, with a
    weight of 0.7 to 15.

    Args:
        taps: the map [B, C, H, W], or tokens, whose average each network's last linear layer reads.
        size: of the maps that are compared.
        normalize: whether to compare their directions only.

    Raises:
        ValueError: for a size below 1, or a network whose head reads anything else.
    """

    def __init__(self, taps: Taps = ("stage-1",), size: int = 2, normalize: bool = True) -> None:
        super().__init__(taps)
        if size < 1:
            raise ValueError(f"size must be at least 1, but is {size}")
        self.size, self.normalize = size, normalize

    def prepare(self, student: Side, teacher: Side) -> None:
        for s, t in zip(self.student_taps, self.teacher_taps, strict=True):
            for side, tap, role in ((student, s, "student"), (teacher, t, "teacher")):
                to_map(side.outputs.features[tap])  # or it says that the tap gives no map
                check_head(side, tap, role, "CAT-KD")
        self.heads = (student.head, teacher.head)  # a tuple: no part of the loss's state

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for pair in self.pairs(student, teacher):
            s, t = (self._class_maps(x, h) for x, h in zip(pair, self.heads, strict=True))
            losses.append(F.mse_loss(s, t.detach()))  # or the head of a peer would learn
        return torch.stack(losses).sum()

    def _class_maps(self, feature: Tensor, head: nn.Linear | None) -> Tensor:
        """[B, classes, size²]; pooled before the head, which is linear and smaller so."""
        assert head is not None
        pooled = pool_to(to_map(feature), (self.size, self.size)).flatten(2)
        class_maps = head.weight @ pooled
        return F.normalize(class_maps, dim=2) if self.normalize else class_maps


def check_places(feature: Tensor, name: str) -> None:
    """Raise for maps of one place, on which a loss would always be 0."""
    if feature[0, 0].numel() == 1:
        raise ValueError(
            f"{name} compares a map's places, but its taps give maps of 1x1: choose an earlier tap"
        )


def check_head(side: Side, tap: str, role: str, name: str) -> None:
    """Raise if a network's logits are not its head's on the average of the feature at a tap.

    Args:
        role: which network it is.
        name: who reads it.
    """
    feature = grid(side.outputs.features[tap])
    head, logits = side.head, side.outputs.logits.detach()
    if head is None:
        raise ValueError(f"{name} needs networks that end in a linear layer, unlike the {role}")
    if head.in_features == channels(feature):
        said = F.linear(to_vector(feature), head.weight, head.bias)
        if torch.allclose(said, logits, rtol=0, atol=0.05 * float(logits.abs().max())):
            return
    raise ValueError(
        f"{name} reads the last linear layer's input, or the map averaged to it, but the {role}'s "
        f"tap {tap!r} is another: "
        "name the right one in taps=[{student: PATH, teacher: PATH}]"
    )


def grid(feature: Tensor) -> Tensor:
    """A vector as it is; tokens as a map, without a class token."""
    return feature if feature.dim() == 2 else to_map(feature)
