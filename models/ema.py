"""An exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from models.classifier import Classifier

Module = TypeVar("Module", bound=nn.Module)


class EMA(Generic[Module]):
    """θ̄ ← d·θ̄ + (1 − d)·θ for each parameter, from θ̄ = θ; buffers are copied.

    In update n, counted from 0, d = min(decay, (1 + n) / (10 + n)), so that the average of a short
    training is not dominated by the initial weights: after 400 updates at a constant 0.999 these
    would still be two thirds of it.

    Args:
        module: what is averaged; trained in place elsewhere.
        decay: in [0, 1); the average goes back about 1 / (1 − d) updates.
        rising: whether d rises to ``decay`` in this way, or is ``decay`` from the start.

    Attributes:
        module: the averaged copy, in eval mode and without gradient: evaluate this one.

    Raises:
        ValueError: for a decay outside [0, 1).
    """

    def __init__(self, module: Module, decay: float, rising: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), but is {decay}")
        self.decay, self.rising = decay, rising
        self.updates = 0
        self.source = module
        # a frozen view has no hooks: taps would cost time here, and hook into the original
        view: Any = module.frozen() if isinstance(module, Classifier) else module
        self.module: Module = copy.deepcopy(view).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step."""
        average: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(self.source.parameters())
        decay = self.decay
        if self.rising:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(average, current, 1 - decay)
        kinds: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for pair in zip(self.module.buffers(), self.source.buffers(), strict=True):
            kinds.setdefault(pair[0].dtype, []).append(pair)
        for pairs in kinds.values():  # of two types in one list, CUDA copies tensor by tensor
            kept, now = zip(*pairs, strict=True)
            torch._foreach_copy_(kept, now)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
