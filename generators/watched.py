"""What layers of a generator give while it makes the inputs of an update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Watched:
    """The latest outputs of layers, in passes with a gradient.

    Passes without one draw inputs for the student, or decode exchanged features.
    """

    def __init__(self) -> None:
        self.latest: dict[int, Tensor] = {}

    def add(self, layers: Sequence[nn.Module]) -> None:
        """Watch these layers, once.

        Raises:
            ValueError: if there are some already.
        """
        if hasattr(self, "layers"):
            raise ValueError(
                "another stream watches the generator's features already: leave it out"
            )
        self.layers = tuple(layers)
        for place, layer in enumerate(layers):
            layer.register_forward_hook(self._hook(place))

    def take(self) -> list[Tensor]:
        """The latest outputs, in the order of the layers; they are forgotten here."""
        taken = [self.latest[place].detach() for place in sorted(self.latest)]
        self.latest = {}
        return taken

    def _hook(self, place: int) -> Any:
        def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
            if torch.is_grad_enabled():
                self.latest[place] = output

        return hook
