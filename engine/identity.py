"""What of a configuration decides what its run computes."""

from __future__ import annotations

import copy
import functools
from typing import Any

# Where a run and its data lie, and how it is watched, does not change what it computes.
NOT_IDENTITY = ["run_root", "run_dir", "overwrite", "device", "log_every", "checkpoints"]
NOT_IDENTITY += ["data.root", "data.dataset.root", "data.dataset.a.root"]
NOT_IDENTITY += ["strict", "plan", "config_path"]
# Keys that came later, with the values that change nothing.
LATER: dict[str, Any] = {
    "students": {},
    "teachers": {},
    "views": {},
    "turns": {},
    "metrics": {},
    "deploy": "student",
    "synthesizer": None,
    "shuffled_pairs": False,
}
LATER |= {"student.transform": None, "student.mean": None, "student.std": None}
LATER |= {"teacher.transform": None, "student.checkpoint": None, "student.weights": None}


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides what its run computes."""
    kept: dict[str, Any] = copy.deepcopy(config)
    for key in NOT_IDENTITY:
        *parents, last = key.split(".")
        node = kept
        for parent in parents:
            node = node.get(parent) or {}
        node.pop(last, None)
    for key, value in LATER.items():  # so that runs from before these keys are still known
        *parents, last = key.split(".")
        node = functools.reduce(lambda n, parent: n.get(parent) or {}, parents, kept)
        if last in node and node[last] == value:
            node.pop(last)
    if kept.get("budget") is not None:  # which decides the steps, on the machine where it starts
        kept.pop("steps", None)
    return kept


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*after, *(k for k in before if k not in after)]
        return [
            found
            for key in keys
            for found in differences(before.get(key), after.get(key), f"{path}{key}.")
        ]
    return [] if before == after else [path.rstrip(".")]
