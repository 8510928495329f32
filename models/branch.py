"""Branches: networks that start from a feature of another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.features import to_vector
from models.initialization import initialize
from models.taps import named_taps


class Branch(nn.Module):
    """A network on a tap of a trunk, as one module: inputs of the trunk to the branch's logits.

    The trunk's weights are shared, not copied. Where the trunk has been run anyway, call ``branch``
    with its feature instead.

    Args:
        trunk: any network.
        tap: of the trunk, a name or module path.
        branch: features [B, ...] of the tap to logits [B, C].
    """

    def __init__(self, trunk: nn.Module, tap: str, branch: nn.Module) -> None:
        super().__init__()
        self.trunk, self.branch, self.tap = trunk, branch, tap
        self.path = named_taps(trunk).get(tap, tap)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(feature_at(self.trunk, self.path, x))  # type: ignore[no-any-return]


def feature_at(network: nn.Module, path: str, x: Tensor) -> Tensor:
    """The output [B, ...] of a layer for normalised inputs of its network, with axes as
    :class:`models.recording.Tap` records it, which a step gives to a branch.

    Raises:
        ValueError: if there is no such layer, or it does not run.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        turned = path in getattr(network, "channels_last", ())
        output = output.movedim(-1, 1) if turned else output
        line = x.dim() == output.dim() == 3 and path not in getattr(network, "tokens", ())
        found.append(output.unsqueeze(2) if line else output)

    if path not in dict(network.named_modules()):
        raise ValueError(f"no tap {path!r} in {type(network).__name__}")
    hook = network.get_submodule(path).register_forward_hook(keep)
    try:
        network(x)
    finally:
        hook.remove()
    if not found:
        raise ValueError(f"the layer {path!r} of {type(network).__name__} does not run")
    return found[-1]


@torch.no_grad()
def feature_shape(network: nn.Module, tap: str, x: Tensor) -> tuple[int, ...]:
    """The shape of a tap's feature for one of these normalised inputs."""
    training = network.training
    path = named_taps(network).get(tap, tap)
    shape = feature_at(network.eval(), path, x).shape[1:]
    network.train(training)
    return tuple(shape)


class Proxy(nn.Module):
    """Features to logits by two linear layers, the first with BatchNorm and LeakyReLU(0.1).

    The proxies of C²KD (Huo et al., CVPR 2024). Of maps and tokens the average is taken.

    Args:
        in_channels: of the feature.
        num_classes: C.
        input_size: of maps [height, width]; none of a vector, and of tokens [width], which
            ``in_channels`` counts.
    """

    def __init__(self, in_channels: int, num_classes: int, input_size: Sequence[int] = ()) -> None:
        super().__init__()
        width = input_size[0] if len(input_size) == 1 else in_channels
        self.layer = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.activation = nn.LeakyReLU(0.1)
        self.linear = nn.Linear(width, num_classes)
        self.taps = {"logits": "linear"}
        initialize(self)
        nn.init.kaiming_normal_(self.layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.layer(to_vector(x))))
        return self.linear(x)  # type: ignore[no-any-return]


class ConvBranch(nn.Module):
    """Maps [B, in_channels, H, W] to logits: the last stages of a small convolutional network.

    Args:
        widths: channels of each stage: two 3×3 convolutions with BatchNorm, and, except for maps of
            one place, max-pooling to half the size; then global pooling and a linear layer.
    """

    def __init__(self, in_channels: int, num_classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            for c in (in_channels, width):
                layers += [nn.Conv2d(c, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
                layers.append(nn.ReLU())
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            in_channels = width
        self.stages = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(in_channels, num_classes)
        self.taps = {"pooled": "flatten", "logits": "linear"}
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flatten(self.pool(self.stages(x))))  # type: ignore[no-any-return]
