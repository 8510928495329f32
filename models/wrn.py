"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from models.initialization import initialize


class WideResNet(nn.Module):
    """WRN-depth-width: inputs [B, in_channels, H, W] of any size to logits [B, num_classes].

    Blocks are pre-activated and without dropout, so the taps ``stage1`` to ``stage3`` are
    not rectified. Modules are named as in the widely used PyTorch version, so that its
    checkpoints load.

    Args:
        depth: convolutions, 6n + 4: 16, 22, 28, 40.
        width: multiplies the 16, 32 and 64 channels of the three stages.

    Raises:
        ValueError: for a depth that is not 6n + 4.
    """

    def __init__(self, in_channels: int, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"a WRN has depth 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}")
        blocks = (depth - 4) // 6
        c1, c2, c3 = 16 * width, 32 * width, 64 * width
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _stage(blocks, 16, c1, 1)
        self.block2 = _stage(blocks, c1, c2, 2)
        self.block3 = _stage(blocks, c2, c3, 2)
        self.bn1 = nn.BatchNorm2d(c3)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(c3, num_classes)
        self.taps = {f"stage{i}": f"block{i}" for i in (1, 2, 3)}
        self.taps |= {"pooled": "flatten", "logits": "fc"}
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.flatten(self.pool(self.relu(self.bn1(x)))))


class PreActivationBlock(nn.Module):
    """BatchNorm, rectifier and convolution, twice, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        # A convolved shortcut starts after the activation, an identity before it (WRN, figure 1).
        return residual + (x if self.convShortcut is None else self.convShortcut(activated))


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(in_channels, out_channels, stride)
    rest = [PreActivationBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))
