"""The taps that a network names itself."""

from __future__ import annotations

from torch import nn


def named_taps(network: nn.Module) -> dict[str, str]:
    """The taps that a network names, {name: module path}; see ``models.classifier``."""
    return dict(getattr(network, "taps", {}))


def stage_taps(network: nn.Module) -> tuple[str, ...]:
    """The stages among them, from the first to the last."""
    return tuple(name for name in named_taps(network) if name.startswith("stage"))
