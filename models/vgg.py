"""VGG (Simonyan and Zisserman, ICLR 2015) for 32×32, as in CRD (Tian et al., ICLR 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from models.initialization import initialize

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2)}


class VGG(nn.Module):
    """Inputs [B, in_channels, H, W], both sides at least 8, to logits [B, num_classes].

    Five blocks with 64 to 512 channels, max-pooling after the first three, global average
    pooling and one linear layer in place of the paper's three. The first block counts as the stem,
    and the other four as stages, as CRD's and ReviewKD's transfer losses take them.

    Args:
        depth: 8, 11 or 13.

    Raises:
        ValueError: for another depth.
    """

    def __init__(self, in_channels: int, num_classes: int, depth: int) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"vgg has depth 8, 11 or 13, not {depth}")
        channels = [in_channels, 64, 128, 256, 512, 512]
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _stage(n, c_in, c_out)
            for n, c_in, c_out in zip(CONVOLUTIONS[depth], channels[:-1], channels[1:], strict=True)
        )
        self.downsample = nn.MaxPool2d(2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(512, num_classes)
        self.taps = {f"stage{i}": f"block{i}" for i in range(1, 5)}
        self.taps |= {"pooled": "flatten", "logits": "classifier"}
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block0, self.block1, self.block2):
            x = self.downsample(block(x))
        return self.classifier(self.flatten(self.pool(self.block4(self.block3(x)))))


def _stage(convolutions: int, in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        source = in_channels if i == 0 else out_channels
        layers += [nn.Conv2d(source, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
