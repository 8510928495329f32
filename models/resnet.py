"""Residual networks (He et al., CVPR 2016): the blocks, and ResNet-18/34/50 for small pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from models.initialization import initialize


class ResNet(nn.Module):
    """Inputs [B, in_channels, H, W] to logits [B, num_classes]; 3×3 stem, no max-pooling.

    Each stage but the first halves the resolution. Taps: ``stage1``, ... after the last
    rectifier of each stage, ``pooled`` and ``logits``.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: blocks of each stage.
        channels: channels of each stage, before the block's expansion.
        stem: channels of the first convolution.
        shortcut: where a block changes the shape: ``"A"`` subsamples by 2 and pads channels
            with zeros, ``"B"`` is a 1×1 convolution with BatchNorm (section 3.3 of the paper).

    Raises:
        ValueError: for another shortcut.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        channels: Sequence[int],
        stem: int,
        in_channels: int,
        num_classes: int,
        shortcut: str = "B",
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(
                f"shortcut is 'A' (zero padding) or 'B' (convolution), not {shortcut!r}"
            )
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stages = [f"layer{i + 1}" for i in range(len(depths))]
        width = stem
        for name, depth, planes in zip(self.stages, depths, channels, strict=True):
            blocks: list[nn.Module] = []
            for i in range(depth):
                stride = 2 if i == 0 and name != "layer1" else 1
                blocks.append(block(width, planes, stride, shortcut))
                width = planes * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(width, num_classes)
        self.taps = {f"stage{i + 1}": name for i, name in enumerate(self.stages)}
        self.taps |= {"pooled": "flatten", "logits": "linear"}
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.linear(self.flatten(self.pool(x)))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(residual)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut; the 3×3 one carries the stride."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        return F.relu(self.bn3(self.conv3(residual)) + self.shortcut(x))


class ZeroPadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and as many channels of zeros before as after."""

    def __init__(self, stride: int, added_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = added_channels // 2
        self.after = added_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def _shortcut(in_channels: int, out_channels: int, stride: int, option: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return ZeroPadShortcut(stride, out_channels - in_channels)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def resnet(in_channels: int, num_classes: int, depth: int) -> ResNet:
    """ResNet-18, 34 or 50 with a 3×3 stem of stride 1, as is usual for 32×32 pictures.

    Raises:
        ValueError: for another depth.
    """
    stages: dict[int, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
        18: (BasicBlock, [2, 2, 2, 2]),
        34: (BasicBlock, [3, 4, 6, 3]),
        50: (Bottleneck, [3, 4, 6, 3]),
    }
    if depth not in stages:
        raise ValueError(
            f"resnet has depth 18, 34 or 50, not {depth}; see also resnet20 to resnet110"
        )
    block, depths = stages[depth]
    return ResNet(block, depths, [64, 128, 256, 512], 64, in_channels, num_classes)
