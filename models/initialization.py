"""How networks with rectifiers are initialised."""

from __future__ import annotations

from torch import nn


def initialize(module: nn.Module) -> None:
    """Draw Kaiming normal convolutions by fan-out (He et al., ICCV 2015, eq. 14); zero all biases.

    Linear weights and BatchNorm layers keep PyTorch's own: uniform in ±1/sqrt(fan-in), and the
    identity.
    """
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None:
            nn.init.zeros_(m.bias)
