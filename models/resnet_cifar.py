"""The residual networks for CIFAR of He et al. (CVPR 2016, section 4.2)."""

from __future__ import annotations

from models.resnet import BasicBlock, ResNet


def resnet_cifar(
    in_channels: int,
    num_classes: int,
    depth: int,
    width: int = 1,
    stem: int = 16,
    shortcut: str = "A",
) -> ResNet:
    """Three stages of (depth - 2) / 6 basic blocks with 16, 32 and 64 channels times ``width``.

    Args:
        depth: weighted layers, 6n + 2: 20, 32, 44, 56 and 110 in the paper.
        width: multiplies the stages' channels. ResNet-8x4 and 32x4 of CRD (Tian et al., ICLR
            2020) have width 4 and a stem of 32 channels.
        stem: channels of the first convolution.
        shortcut: ``"A"`` as in the paper, or ``"B"`` as in CRD: see :class:`models.resnet.ResNet`.

    Raises:
        ValueError: for a depth that is not 6n + 2, or an unknown shortcut.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"a CIFAR ResNet has depth 6n + 2 (8, 14, 20, ...), not {depth}")
    channels = [16 * width, 32 * width, 64 * width]
    depths = [(depth - 2) // 6] * 3
    return ResNet(BasicBlock, depths, channels, stem, in_channels, num_classes, shortcut)
