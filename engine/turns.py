"""The optimizers of a run: one for all, and those of owners that learn in their own way or turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.build import build
from distillers.distiller import Distiller
from models.branch import Branch

Optimizers = Callable[..., torch.optim.Optimizer]


@dataclass
class Turn:
    """An optimizer that steps in every so many steps of the run, from the first on."""

    optimizer: torch.optim.Optimizer
    every: int = 1
    first: int = 0


class Turns:
    """Several optimizers behind the interface of one.

    Gradients of parameters whose turn it is not are thrown away.
    """

    def __init__(self, turns: list[Turn]) -> None:
        self.turns, self.steps = turns, 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all, so that one schedule sets all learning rates."""
        return [group for turn in self.turns for group in turn.optimizer.param_groups]

    def step(self) -> None:
        for turn in self.turns:
            if self.steps % turn.every == turn.first:
                turn.optimizer.step()
        self.steps += 1

    def zero_grad(self) -> None:
        for turn in self.turns:
            turn.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "optimizers": [t.optimizer.state_dict() for t in self.turns]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        for turn, saved in zip(self.turns, state["optimizers"], strict=True):
            turn.optimizer.load_state_dict(saved)


def build_optimizer(
    config: Mapping[str, Any], distiller: Distiller, available: Mapping[str, Any]
) -> torch.optim.Optimizer | Turns:
    """The optimizer of all that learns, or several where ``turns`` names owners.

    Raises:
        ValueError: for an owner that does not exist, has no parameters or is named twice, and for
            turns that never come.
    """
    make: Optimizers = build(config["optimizer"], Optimizers, "optimizer", **available)
    rest = {id(p): p for p in distiller.parameters() if p.requires_grad}
    turns: list[Turn] = []
    for name, node in config["turns"].items():
        path = f"turns.{name}"
        if not 0 <= node["first"] < node["every"]:
            raise ValueError(
                f"{path}: first={node['first']} should lie from 0 to every-1={node['every'] - 1}"
            )
        owned = [p for p in _owner(distiller, node["of"], path).parameters() if p.requires_grad]
        chosen = [rest.pop(id(p)) for p in owned if id(p) in rest]
        if not chosen:
            raise ValueError(f"{path}.of={node['of']} has no parameters of its own to learn")
        own: Optimizers = make
        if node["optimizer"] is not None:
            own = build(node["optimizer"], Optimizers, f"{path}.optimizer", **available)
        turns.append(Turn(own(chosen), node["every"], node["first"]))
    if not turns:
        return make(list(rest.values()))
    return Turns([*([Turn(make(list(rest.values())))] if rest else []), *turns])


def _owner(distiller: Distiller, of: str, path: str) -> nn.Module:
    """What ``student``, ``students.NAME``, ``teachers.NAME`` or ``losses.NAME`` stands for."""
    groups: dict[str, Mapping[str, nn.Module]] = {
        "students": dict(distiller.students.items()),
        "teachers": dict(distiller.teachers.items()),
        "losses": dict(distiller.objective.losses.items()),
    }
    if of == "student":
        return distiller.student
    group, _, name = of.partition(".")
    if name not in groups.get(group, {}):
        known = ["student", *(f"{g}.{n}" for g, found in groups.items() for n in found)]
        raise ValueError(f"{path}.of={of} does not exist; there is: {', '.join(known)}")
    found = groups[group][name]
    module = getattr(found, "module", None)
    return module.branch if isinstance(module, Branch) else found  # its trunk is another student's
