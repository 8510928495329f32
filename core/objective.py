"""The objective of a generator or of a student: a weighted sum of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.schedules import Factor

FAILED = "failed_loss"  # attribute of an exception that a loss raised: its name, and the loss


@dataclass
class Losses:
    """The result of an objective.

    Args:
        total: carries the gradient.
        values: each weighted loss, detached.
        teacher_logits: [B, C], the teacher's logits, if the losses use the teacher.
    """

    total: Tensor
    values: dict[str, Tensor]
    teacher_logits: Tensor | None = None


class Weighted(nn.Module):
    """One loss and its weight.

    Args:
        loss: a module that returns a scalar to be minimised.
        weight: factor on its value.
        schedule: factor on the weight, as a function of the run's progress.
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

    def forward(self, *args: Any, **more: Any) -> Tensor:
        return self.weight * self.loss(*args, **more)  # type: ignore[no-any-return]

    @property
    def off(self) -> bool:
        """Whether its weight is 0, as its schedule may say."""
        return not self.weight

    def nothing(self, device: str) -> Tensor:
        """A zero that depends on the loss's parameters, so that DDP gets gradients for them."""
        zero = torch.zeros((), device=device)
        return zero + sum(0 * p.sum() for p in self.parameters() if p.requires_grad)


Arguments = Callable[[str], tuple[tuple[Any, ...], Mapping[str, Any]]]


class Objective(nn.Module):
    """The weighted sum of named losses.

    Losses are computed in float32, even under autocast. A loss says what it needs in class
    attributes (see ``distillers.base`` and ``generators.base``).

    Raises:
        ValueError: if there is no loss.
    """

    def __init__(self, losses: Mapping[str, Weighted]) -> None:
        super().__init__()
        if not losses:
            raise ValueError("an objective needs at least one loss")
        self.losses = nn.ModuleDict(dict(losses))

    def ask(self, attribute: str) -> list[Any]:
        """The values of an attribute, one for each loss that has it."""
        losses = [weighted.loss for weighted in self.losses.values()]  # type: ignore[union-attr]
        return [getattr(loss, attribute) for loss in losses if hasattr(loss, attribute)]

    def at(self, progress: float) -> None:
        """Tell every loss how much of the run is done, in [0, 1]: weights follow schedules."""
        for weighted in self.losses.values():
            weighted.at(progress)  # type: ignore[operator]

    def forward(self, *args: Any, skip: tuple[str, ...] = ()) -> Losses:
        """Compute the losses, each called with the same arguments; see :meth:`compute`."""
        return self.compute(lambda _: (args, {}), _device_type(args), skip)

    def compute(self, arguments: Arguments, device: str, skip: tuple[str, ...] = ()) -> Losses:
        """Compute the losses, each called with what ``arguments`` gives for its name.

        Losses with a true attribute named in ``skip``, and those with weight 0, count as 0 and are
        not computed.
        """
        values = {}
        with torch.autocast(device, enabled=False):
            for name, weighted in self.losses.items():
                if weighted.off or any(
                    getattr(weighted.loss, attribute, False) for attribute in skip
                ):
                    values[name] = weighted.nothing(device)  # type: ignore[operator]
                else:
                    values[name] = _value(name, weighted, *arguments(name))
        total = torch.stack(list(values.values())).sum()
        return Losses(total, {name: value.detach() for name, value in values.items()})


def _value(
    name: str, weighted: nn.Module, args: tuple[Any, ...], more: Mapping[str, Any]
) -> Tensor:
    try:
        value = weighted(*args, **more)
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
