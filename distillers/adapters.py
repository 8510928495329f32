"""Features of two shapes made comparable: channels by a learned projection, sizes by pooling.

A feature is a map [B, C, H, W], tokens [B, N, D] or a vector [B, D].
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distillers.base import TransferLoss
from models.classifier import Outputs
from models.features import channels, comparable


class Adapter(nn.Module):
    """A student's feature brought to a teacher's kind and channels, and both to one size.

    Tokens beside a map become a map, so that a ViT and a CNN compare; beside a vector, a map or
    tokens are averaged to one. Of two maps the larger is average-pooled, each side on its own, to
    the smaller. Then a 1×1 convolution, or a linear layer on tokens and vectors, takes the
    student's channels to the teacher's.

    Args:
        student: an example of the student's feature.
        teacher: of the teacher's.
        always: project even if the channels agree; otherwise such a pair has no parameters.

    Attributes:
        channels: of the student's feature and of the teacher's.
    """

    def __init__(self, student: Tensor, teacher: Tensor, always: bool = False) -> None:
        super().__init__()
        self.shapes = (tuple(student.shape[1:]), tuple(teacher.shape[1:]))
        student, teacher = comparable(student, teacher)
        self.channels = (channels(student), channels(teacher))
        self.projection: nn.Module = nn.Identity()
        if always or self.channels[0] != self.channels[1]:
            if student.dim() == 4:
                self.projection = nn.Conv2d(*self.channels, 1, bias=False)
            else:
                self.projection = nn.Linear(*self.channels)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both features in one shape: the student's projected, the teacher's pooled if needed."""
        student, teacher = comparable(student, teacher)
        return self.projection(student), teacher

    def describe(self) -> str:
        """A line for the log."""
        return describe_adapter(*self.shapes, by=str(self.projection))


def describe_adapter(student: Sequence[int], teacher: Sequence[int], by: str) -> str:
    """How two features of these shapes are joined, without the batch."""
    a, b = ("x".join(map(str, shape)) for shape in (student, teacher))
    return f"student {a} to teacher {b} by {by}"


def adaptations(loss: TransferLoss, student: Outputs, teacher: Outputs) -> list[str]:
    """A line for each pair of features of different shapes that a loss's layers join.

    Args:
        loss: prepared.
        student: outputs with the loss's taps.
        teacher: likewise.
    """
    adapters = [module for module in loss.modules() if isinstance(module, Adapter)]
    if adapters:
        return [adapter.describe() for adapter in adapters]
    if not loss.teacher_taps or not any(True for _ in loss.parameters()):
        return []
    pairs = [(s.shape[1:], t.shape[1:]) for s, t in loss.pairs(student, teacher)]
    return [describe_adapter(s, t, by="the loss's own layers") for s, t in pairs if s != t]
