"""ShuffleNet (Zhang et al., CVPR 2018) and V2 (Ma et al., ECCV 2018) for 32×32.

As in CRD (Tian et al., ICLR 2020): a stem of one 1×1 convolution, and no pooling after it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.initialization import initialize
from models.layers import convolution

STEM = 24
BLOCKS = (4, 8, 4)  # units of each stage, in both papers
V1_CHANNELS, V1_GROUPS = (240, 480, 960), 3  # table 1 of the first paper
V2_CHANNELS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024)}  # table 5 of the second


class ShuffleNet(nn.Module):
    """Inputs [B, in_channels, H, W] to logits [B, num_classes]; 32×32 ends in maps of 4×4.

    Three stages, each of which halves the resolution in its first unit. Taps: ``stage1`` to
    ``stage3``, ``pooled`` and ``logits``.

    Args:
        stages: three lists of units.
        width: channels of the last unit.
        head: channels of a last 1×1 convolution, or None for none.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stages: list[list[nn.Module]],
        width: int,
        head: int | None = None,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(in_channels, STEM), nn.ReLU())
        self.stage1, self.stage2, self.stage3 = (nn.Sequential(*units) for units in stages)
        last = [*convolution(width, head), nn.ReLU()] if head else []
        self.head = nn.Sequential(*last)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(head or width, num_classes)
        self.taps = {f"stage{i}": f"stage{i}" for i in (1, 2, 3)}
        self.taps |= {"pooled": "flatten", "logits": "linear"}
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.linear(self.flatten(self.pool(self.head(x))))


def shufflenet_v1(in_channels: int, num_classes: int) -> ShuffleNet:
    """ShuffleNet 1× with 3 groups."""
    stages, width = [], STEM
    for channels, count in zip(V1_CHANNELS, BLOCKS, strict=True):
        first: list[nn.Module] = [GroupUnit(width, channels, stride=2)]
        stages.append(first + [GroupUnit(channels, channels) for _ in range(count - 1)])
        width = channels
    return ShuffleNet(in_channels, num_classes, stages, width)


def shufflenet_v2(in_channels: int, num_classes: int, size: float = 1.0) -> ShuffleNet:
    """ShuffleNetV2.

    Args:
        size: 0.5 or 1, of the paper's.

    Raises:
        ValueError: for another size.
    """
    if size not in V2_CHANNELS:
        raise ValueError(f"shufflenet_v2 has size 0.5 or 1, not {size}")
    stages, width = [], STEM
    *channels, head = V2_CHANNELS[size]
    for c, count in zip(channels, BLOCKS, strict=True):
        first: list[nn.Module] = [DownUnit(width, c)]
        stages.append(first + [SplitUnit(c) for _ in range(count - 1)])
        width = c
    return ShuffleNet(in_channels, num_classes, stages, width, head)


class GroupUnit(nn.Module):
    """1×1 in groups, shuffled, 3×3 depthwise, 1×1 in groups (figure 2 of the first paper).

    With stride 1 the input is added; with stride 2 its average-pooled channels are joined on, and
    the convolutions give the others. Inside they are a quarter as wide as what they give. As in
    CRD, a rectifier follows the depthwise convolution too.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.joined = stride == 2
        given = out_channels - in_channels if self.joined else out_channels
        inside = given // 4
        groups = 1 if in_channels == STEM else V1_GROUPS  # too few channels for groups
        self.enter = nn.Sequential(*convolution(in_channels, inside, groups=groups), nn.ReLU())
        self.groups = groups
        depthwise = convolution(inside, inside, 3, stride, groups=inside)
        self.leave = nn.Sequential(
            *depthwise, nn.ReLU(), *convolution(inside, given, groups=V1_GROUPS)
        )
        self.shortcut = nn.AvgPool2d(3, 2, 1) if self.joined else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        made = self.leave(shuffled(self.enter(x), self.groups))
        around = self.shortcut(x)
        return (torch.cat([made, around], dim=1) if self.joined else made + around).relu()


class SplitUnit(nn.Module):
    """Half of the channels pass, half are convolved, and both are shuffled (figure 3c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        passing, convolved = x.chunk(2, dim=1)
        return shuffled(torch.cat([passing, self.branch(convolved)], dim=1), 2)


class DownUnit(nn.Module):
    """All channels go both ways at half the resolution, each to half of them (figure 3d)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        depthwise = convolution(in_channels, in_channels, 3, 2, groups=in_channels)
        self.short = nn.Sequential(*depthwise, *convolution(in_channels, half), nn.ReLU())
        self.branch = _branch(in_channels, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(torch.cat([self.short(x), self.branch(x)], dim=1), 2)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """[B, C, H, W] with one channel of each group after another: g·n channels as n·g."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _branch(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """1×1, 3×3 depthwise without a rectifier, 1×1."""
    depthwise = convolution(c_out, c_out, 3, stride, groups=c_out)
    return nn.Sequential(
        *convolution(c_in, c_out), nn.ReLU(), *depthwise, *convolution(c_out, c_out), nn.ReLU()
    )
