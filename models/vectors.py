"""Networks for vectors: rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.initialization import initialize


class MLP(nn.Module):
    """Inputs [B, in_channels] to logits [B, num_classes]: layers with BatchNorm and rectifiers.

    Args:
        in_channels: values of an input.
        num_classes: of the classifier.
        widths: of the hidden layers.

    Raises:
        ValueError: without a hidden layer.
    """

    def __init__(
        self, in_channels: int, num_classes: int, widths: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("an MLP has at least one hidden layer: widths=[64]")
        self.stages = nn.ModuleList()
        for width in widths:
            self.stages.append(_stage(in_channels, width))
            in_channels = width
        self.linear = nn.Linear(in_channels, num_classes)
        self.taps = {f"stage{i}": f"stages.{i - 1}" for i in range(1, len(widths) + 1)}
        self.taps |= {"pooled": f"stages.{len(widths) - 1}", "logits": "linear"}
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.linear(x)  # type: ignore[no-any-return]


def _stage(in_channels: int, width: int) -> nn.Sequential:
    layer = nn.Linear(in_channels, width, bias=False)
    return nn.Sequential(layer, nn.BatchNorm1d(width), nn.ReLU())
