"""Connectors, for losses that need more than an adapter: features normalised, or in one layout."""

from __future__ import annotations

from torch import Tensor, nn

from distillers.adapters import Adapter
from models.features import comparable, to_map


class Connector(nn.Module):
    """Both features as [B, C, N], the student's through a 1×1 convolution and BatchNorm.

    Args:
        student: an example of the student's feature.
        teacher: of the teacher's.
        always: project even if the channels agree; otherwise such a student passes unchanged.
    """

    def __init__(self, student: Tensor, teacher: Tensor, always: bool) -> None:
        super().__init__()
        self.adapter = Adapter(student, teacher, always)
        projects = not isinstance(self.adapter.projection, nn.Identity)
        width = self.adapter.channels[1]
        self.norm: nn.Module = nn.BatchNorm1d(width) if projects else nn.Identity()

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = self.adapter(student, teacher)
        return self.norm(places(student)), places(teacher)


def maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both features as maps [B, C, H, W] of one size; channels stay as they are."""
    return comparable(to_map(student), to_map(teacher))


def places(x: Tensor) -> Tensor:
    """[B, C, N] of a map, of tokens [B, N, C], or of a vector [B, C] with N = 1."""
    if x.dim() == 2:
        return x.unsqueeze(2)
    return x.flatten(2) if x.dim() == 4 else x.transpose(1, 2)
