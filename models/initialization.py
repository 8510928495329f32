"""How networks with rectifiers are initialised."""

from __future__ import annotations

import torch
from torch import nn


def initialize(module: nn.Module) -> None:
    """Draw Kaiming normal convolutions by fan-out (He et al., ICCV 2015, eq. 14); zero all biases.

    Linear weights and BatchNorm layers keep PyTorch's own: uniform in ±1/sqrt(fan-in), and the
    identity.
    """
    for m in module.modules():
        if isinstance(m, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear)) and m.bias is not None:
            nn.init.zeros_(m.bias)


def reinitialize(module: nn.Module, noise: torch.Generator) -> None:
    """Draw the weights of every layer anew, as its own ``reset_parameters`` does.

    A layer comes after those inside it, whose first values it may set differently.

    The draw depends on the seed that ``noise`` started from and leaves the global random state
    as it was, so that a resumed run draws the same.
    """
    parameter = next(module.parameters(), None)
    devices = [parameter.device] if parameter is not None and parameter.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(noise.initial_seed())
        module.apply(_reset)


def _reset(layer: nn.Module) -> None:
    if hasattr(layer, "reset_parameters"):
        layer.reset_parameters()  # type: ignore[operator]
