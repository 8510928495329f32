"""Layers that several families of networks share."""

from __future__ import annotations

from torch import nn


def convolution(
    in_channels: int, out_channels: int, side: int = 1, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution without bias, padded to keep the size (but for its stride), and BatchNorm."""
    layer = nn.Conv2d(in_channels, out_channels, side, stride, side // 2, groups=groups, bias=False)
    return layer, nn.BatchNorm2d(out_channels)


def projection_head(features: int, width: int, hidden: int | None = None) -> nn.Sequential:
    """Two linear layers, [B, features] to [B, hidden] (``width`` by default) to [B, width]."""
    hidden = hidden or width
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, width))
