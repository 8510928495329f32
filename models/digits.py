"""A small network for small pictures, such as scikit-learn's 8×8 digits."""

from __future__ import annotations

from torch import Tensor, nn

from models.initialization import initialize


class DigitsCNN(nn.Module):
    """Inputs [B, in_channels, H, W], both sides at least 4, to logits [B, num_classes].

    Two stages of two 3×3 convolutions with BatchNorm, each halving the resolution, and global
    average pooling.

    Args:
        width: channels of the first stage; the second has twice as many.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 48) -> None:
        super().__init__()
        self.stage1 = _stage(in_channels, width)
        self.stage2 = _stage(width, 2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(2 * width, num_classes)
        self.taps = {"stage1": "stage1", "stage2": "stage2", "pooled": "flatten"}
        self.taps["logits"] = "linear"
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flatten(self.pool(self.stage2(self.stage1(x)))))


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
