"""Figures besides accuracy, agreement and calibration, measured once at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from core.build import build
from core.runtime import Runtime
from engine.parts import Parts
from models.classifier import Classifier


class Metric(Protocol):
    """A part under ``metrics``; its name there is the figure's in ``result.json``."""

    def __call__(self, network: Classifier, split: Any, runtime: Runtime) -> float:
        """The figure of a network on a split that ranks share."""


def build_metrics(config: Mapping[str, Any], split: Any) -> dict[str, Metric]:
    """The parts under ``metrics``, by name.

    Raises:
        ValueError: for one that needs labels where the split, on which it is measured, has none.
    """
    found = {}
    for name, node in config["metrics"].items():
        found[name] = build(node, Metric, f"metrics.{name}")
        if getattr(found[name], "needs_label", False) and not split.labelled:
            raise ValueError(
                f"metrics.{name} needs labels, which what the run is measured on does not have: "
                f"leave it out, with ~metrics.{name}"
            )
    return found


def measure(
    metrics: Mapping[str, Metric],
    parts: Parts,
    teacher: Classifier | None,
    split: Any,
    runtime: Runtime,
) -> dict[str, dict[str, float]]:
    """Every figure of the teacher and of every network that is evaluated, by its name."""
    networks = {parts.deploy: parts.result, **parts.beside}
    networks |= {"teacher": teacher} if teacher else {}
    return {
        name: {key: metric(network, split, runtime) for key, metric in metrics.items()}
        for name, network in networks.items()
    }
