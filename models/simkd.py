"""A backbone under the classifier of another network (Chen et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.initialization import initialize


class SimKDStudent(nn.Module):
    """SimKD's student: backbone, projector and a classifier of the teacher's shape.

    The projector brings the backbone's last map to the teacher's channels: 1×1, 3×3 and 1×1
    convolutions without bias, each with BatchNorm and a rectifier. It is the tap ``projected`` and,
    unlike what transfer losses own, part of the network. ``distillers.simkd`` trains both and puts
    the teacher's weights into the classifier.

    Args:
        backbone: a network of which all after its last map is taken off: ResNet, WRN, VGG or
            the digits' CNN. Its stages keep their names.
        features: channels of the teacher's last map.
        factor: the two inner convolutions have ``features``/``factor`` channels.

    Raises:
        ValueError: for a backbone that does not average a last map, or sizes out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        input_size: tuple[int, int],
        backbone: nn.Module,
        features: int,
        factor: int = 2,
    ) -> None:
        super().__init__()
        if features < 1 or factor < 1:
            raise ValueError(
                f"features and factor must be at least 1, but are {features} and {factor}"
            )
        named: dict[str, str] = dict(getattr(backbone, "taps", {}))
        self.backbone = _without_head(backbone, named)
        width = _last_channels(backbone, (in_channels, *input_size))
        inner = max(1, features // factor)
        layers = [*_layer(width, inner, 1), *_layer(inner, inner, 3), *_layer(inner, features, 1)]
        self.projector = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(features, num_classes)
        stages = {n: f"backbone.{path}" for n, path in named.items() if n.startswith("stage")}
        ends = {"projected": "projector", "pooled": "flatten", "logits": "linear"}
        self.taps = stages | ends
        initialize(self.projector)
        initialize(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flatten(self.pool(self.projector(self.backbone(x)))))


def _without_head(backbone: nn.Module, taps: dict[str, str]) -> nn.Module:
    """The same network, with nothing done to its last map."""
    pools = [n for n, m in backbone.named_children() if isinstance(m, nn.AdaptiveAvgPool2d)]
    for path in {*pools, *(taps[end] for end in ("pooled", "logits") if end in taps)}:
        backbone.set_submodule(path, nn.Identity())
    return backbone


def _last_channels(backbone: nn.Module, shape: tuple[int, ...]) -> int:
    refused = ValueError(
        "SimKD projects the last map of its backbone, which is not where the head of "
        f"{type(backbone).__name__} begins: choose a ResNet, WRN, VGG or DigitsCNN"
    )
    try:
        with torch.no_grad():
            last = backbone.eval()(torch.zeros(2, *shape))
    except RuntimeError:  # a layer between the map and the head does not fit the map
        raise refused from None
    backbone.train()
    if last.dim() != 4:
        raise refused
    return int(last.shape[1])


def _layer(c_in: int, c_out: int, side: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(c_in, c_out, side, padding=side // 2, bias=False)
    return convolution, nn.BatchNorm2d(c_out), nn.ReLU()
