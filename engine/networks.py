"""Networks, objectives and what judges synthesized inputs, from their nodes."""

from __future__ import annotations

from typing import Any

import torch

from core.build import build
from core.objective import Objective, Weighted
from data.spec import InputSpec
from generators.observer import Observer
from models.check import materialize


def build_network(
    node: dict[str, Any],
    shape: tuple[int, ...],
    classes: tuple[str, ...],
    path: str = "model",
    spec: InputSpec | None = None,
) -> torch.nn.Module:
    """A network for inputs of this shape, with one output for each class.

    Args:
        spec: of the inputs, for networks that name it; mean and std may be unknown (0 and 1).
    """
    offered: dict[str, Any] = {
        "in_channels": shape[0],
        "input_size": shape[1:],
        "num_classes": len(classes),
    }
    offered |= {} if spec is None else {"spec": spec}
    network: torch.nn.Module = build(node, torch.nn.Module, path, **offered)
    return materialize(network, shape, len(classes))


def build_objective(node: dict[str, Any], path: str = "", /, **available: Any) -> Objective:
    """The weighted sum of the losses under ``node``, which stands at ``path``."""
    weighted = {"_target_": f"{Weighted.__module__}.{Weighted.__qualname__}"}
    nodes = {name: {**weighted, **entry} for name, entry in node["losses"].items()}
    return Objective(
        {n: build(node, Weighted, f"{path}.losses.{n}", **available) for n, node in nodes.items()}
    )


def build_observer(node: dict[str, Any], objective: Objective, **available: Any) -> Observer:
    """What judges synthesized inputs by an objective, as ``synthesis`` says."""
    target = f"{Observer.__module__}.{Observer.__qualname__}"
    settings = {key: value for key, value in node.items() if key != "losses"}
    available |= {"objective": objective}
    made: Observer = build({"_target_": target, **settings}, Observer, "synthesis", **available)
    return made
