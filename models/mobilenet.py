"""MobileNetV2 (Sandler et al., CVPR 2018) for 32×32, as in CRD (Tian et al., ICLR 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from models.initialization import initialize
from models.layers import convolution

STEM, HEAD = 32, 1280
# Channels, blocks and first stride of each row of the paper's table 2, a stage for each resolution.
# For small pictures the row of 24 channels keeps the resolution.
STAGES = (
    ((16, 1, 1), (24, 2, 1)),
    ((32, 3, 2),),
    ((64, 4, 2), (96, 3, 1)),
    ((160, 3, 2), (320, 1, 1)),
)


class MobileNetV2(nn.Module):
    """Inputs [B, in_channels, H, W] to logits [B, num_classes]; 32×32 ends in maps of 2×2.

    Inverted residuals (section 3.3 of the paper), with CRD's rectifiers in place of ReLU6. Taps:
    ``stage1`` to ``stage4`` are the last linear bottleneck at each resolution; after the last one,
    ``head`` widens to 1280 channels, whose average is ``pooled``.

    Args:
        width: multiplies all channels but the head's; 0.5 is CRD's student.
        expansion: how much wider a block is inside, but for the first one.

    Raises:
        ValueError: for a width that leaves no channels, or an expansion below 1.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: float = 1.0, expansion: int = 6
    ) -> None:
        super().__init__()
        if 16 * width < 1 or expansion < 1:
            raise ValueError(
                f"mobilenet has a width of at least 1/16 and an expansion of at least 1, not "
                f"{width} and {expansion}"
            )
        channels = int(STEM * width)
        self.stem = nn.Sequential(*convolution(in_channels, channels, 3, 2), nn.ReLU())
        self.stages = [f"stage{i + 1}" for i in range(len(STAGES))]
        factor = 1  # of the first block
        for name, rows in zip(self.stages, STAGES, strict=True):
            blocks = []
            for planes, count, first in rows:
                for stride in [first] + [1] * (count - 1):
                    out = int(planes * width)
                    blocks.append(InvertedResidual(channels, out, stride, factor))
                    channels, factor = out, expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.head = nn.Sequential(*convolution(channels, HEAD, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(HEAD, num_classes)
        self.taps = {name: name for name in self.stages}
        self.taps |= {"pooled": "flatten", "logits": "classifier"}
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.classifier(self.flatten(self.pool(self.head(x))))


class InvertedResidual(nn.Module):
    """1×1 up, 3×3 depthwise, 1×1 down without a rectifier; around it, where shapes allow, x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = in_channels * expansion
        up, depthwise = (
            convolution(in_channels, inside, 1),
            convolution(inside, inside, 3, stride, inside),
        )
        down = convolution(inside, out_channels, 1)
        self.layers = nn.Sequential(*up, nn.ReLU(), *depthwise, nn.ReLU(), *down)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)
