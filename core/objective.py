"""An objective is a weighted sum of losses, for a generator and for a student alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.schedules import Factor

FAILED = "failed_loss"  # of an exception: name and loss, where a loss raised it


@dataclass
class Losses:
    """What an objective gives.

    Args:
        total: carries the gradient.
        values: each weighted loss, detached.
        teacher_logits: [B, C], the teacher's answers, where it has any part in the losses.
    """

    total: Tensor
    values: dict[str, Tensor]
    teacher_logits: Tensor | None = None


class Weighted(nn.Module):
    """One loss and its weight.

    Args:
        loss: a module that returns a scalar to be minimised.
        weight: what its value is multiplied by.
        schedule: what the weight is multiplied by, from the run's progress.
    """

    def __init__(
        self, loss: nn.Module, weight: float = 1.0, schedule: Factor | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.initial = self.weight = float(weight)
        self.schedule = schedule

    def at(self, progress: float) -> None:
        """Set the weight for the step that starts at ``progress``, in [0, 1]."""
        if self.schedule:
            self.weight = self.initial * self.schedule(progress)
        if hasattr(self.loss, "at"):
            self.loss.at(progress)  # type: ignore[operator]

    def forward(self, *args: Any) -> Tensor:
        return self.weight * self.loss(*args)  # type: ignore[no-any-return]

    @property
    def off(self) -> bool:
        """Whether its schedule has switched it off."""
        return self.schedule is not None and not self.weight

    def nothing(self, device: str) -> Tensor:
        """0, which depends on the loss's parameters as far as DDP, waiting for them, can see."""
        zero = torch.zeros((), device=device)
        return zero + sum(0 * p.sum() for p in self.parameters() if p.requires_grad)


class Objective(nn.Module):
    """The weighted sum of named losses; every loss is called with the same arguments.

    Losses are computed in float32 whatever the autocast around the call. A loss says what it
    needs by class attributes (see ``distillers.base`` and ``generators.base``).

    Raises:
        ValueError: where there is no loss.
    """

    def __init__(self, losses: Mapping[str, Weighted]) -> None:
        super().__init__()
        if not losses:
            raise ValueError("an objective needs at least one loss")
        self.losses = nn.ModuleDict(dict(losses))

    def ask(self, attribute: str) -> list[Any]:
        """What the losses say of themselves, one entry per loss that has the attribute."""
        losses = [weighted.loss for weighted in self.losses.values()]  # type: ignore[union-attr]
        return [getattr(loss, attribute) for loss in losses if hasattr(loss, attribute)]

    def at(self, progress: float) -> None:
        """Tell every loss how much of the run is done, in [0, 1]: weights follow schedules."""
        for weighted in self.losses.values():
            weighted.at(progress)  # type: ignore[operator]

    def forward(self, *args: Any, skip: tuple[str, ...] = ()) -> Losses:
        """The losses.

        Losses with a true attribute of a name in ``skip``, and those whose schedule has switched
        them off, count as 0 and are not computed.
        """
        device = _device_type(args)
        values = {}
        with torch.autocast(device, enabled=False):
            for name, weighted in self.losses.items():
                if weighted.off or any(
                    getattr(weighted.loss, attribute, False) for attribute in skip
                ):
                    values[name] = weighted.nothing(device)  # type: ignore[operator]
                else:
                    values[name] = _value(name, weighted, args)
        total = torch.stack(list(values.values())).sum()
        return Losses(total, {name: value.detach() for name, value in values.items()})


def _value(name: str, weighted: nn.Module, args: tuple[Any, ...]) -> Tensor:
    try:
        value = weighted(*args)
        if not isinstance(value, Tensor) or value.dim():
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"gives {given}, where a tensor of shape () is needed")
        return value
    except Exception as error:
        setattr(error, FAILED, (name, getattr(weighted, "loss", weighted)))
        raise


def _device_type(args: tuple[Any, ...]) -> str:
    """The device of the first tensor found in the arguments or in their fields."""
    for arg in args:
        for value in (arg, *getattr(arg, "__dict__", {}).values()):
            if isinstance(value, Tensor):
                return value.device.type
    return "cpu"
