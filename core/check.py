"""Check configuration nodes against the signatures of what they build."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from omegaconf import OmegaConf

from core.annotations import MISSING, check_type, hints_of, shorten

SPECIAL = {"_target_", "_partial_", "_training_"}  # never arguments of the target

RENAMED = {"term": "loss", "terms": "losses"}  # groups and keys, by what they were called before
# Dotted keys, by where they stood before, when a source made its inputs itself.
MOVED = {f"source.{key}": f"synthesizer.{key}" for key in ("generator", "variable", "iterations")}
MOVED |= {f"source.{key}": f"synthesizer.{key}" for key in ("optimizer", "schedule", "clip")}
MOVED |= {f"source.{key}": f"synthesis.{key}" for key in ("views", "local_views")}
MOVED |= {
    "source.targets": "synthesizer.targets",
    "source.synthesis_batch_size": "synthesizer.size",
    "source.generator_steps": "synthesizer.updates",
    "source.warmup_rounds": "source.warmup",
    "source.student_by_batch": "synthesis.student_by_batch",
    "source.reuse": "source.streams.fresh.reuse",
    "source.capacity": "source.streams.bank.capacity",
    "source.replay": "source.streams.replay",
    "source.experience": "source.streams.experience",
    "source.exchange": "source.streams.exchange",
}

# What the engine hands to any target whose signature names it (see core.build).
AVAILABLE = {
    "spec",
    "num_classes",
    "classes",
    "in_channels",
    "input_size",
    "teacher",
    "student",
    "data",
    "runtime",
    "expected",
    "observer",
    "synthesizer",
    "steps",
    "batch_size",
    "ask_teacher",
}


def describe_unknown(name: str, known: Sequence[str]) -> str:
    """Say that a name does not exist, and what was probably meant or which names there are."""
    if RENAMED.get(name) in known:
        return f"no {shorten(name)}; it is called {RENAMED[name]!r} now"
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if near:
        return f"no {shorten(name)}; did you mean {near[0]!r}?"
    return f"no {shorten(name)}; there is: {', '.join(known) or 'nothing to set here'}"


def is_target(node: Any) -> bool:
    """Whether a node (plain or OmegaConf) builds something."""
    # among the keys, where OmegaConf also counts one whose value is still to be given
    return (isinstance(node, Mapping) or OmegaConf.is_dict(node)) and "_target_" in set(node)


def parameters_of(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters that a callable takes by name, and whether it takes any other keyword."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some built-ins have no signature
        return {}, True
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in parameters.items() if p.kind in named}, open_ended


def check_node(node: Any, path: str) -> list[str]:
    """Every mistake in a node and in those below it: missing or unknown targets, keys, types."""
    mistakes: list[str] = []
    if isinstance(node, Mapping):
        if is_target(node):
            mistakes += _check_target(node, path)
        for key, value in node.items():
            mistakes += check_node(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            mistakes += check_node(value, f"{path}[{i}]")
    elif isinstance(node, str) and node == MISSING:
        mistakes.append(f"{path} is not set and has no default: give {path}=...")
    elif isinstance(node, float) and not math.isfinite(node):
        mistakes.append(f"{path}={node} is not finite: give a number")
    return mistakes


def _check_target(node: Mapping[str, Any], path: str) -> list[str]:
    name = node["_target_"]
    if name == MISSING:
        return []  # reported with the key
    try:
        target = resolve_name(name)
    except (Exception, SystemExit) as error:  # an import can raise anything
        why = _near_target(node)
        if isinstance(error, (TypeError, SyntaxError, NameError)):  # a mistake in the module itself
            why = f": {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return [f"{path}._target_: cannot import {shorten(name)}{why}"]
    if not callable(target):
        return [f"{path}._target_: {name!r} is not something that builds a part"]
    parameters, open_ended = parameters_of(target)
    hints = hints_of(target)
    mistakes = check_type(node.get("_partial_", False), bool, f"{path}._partial_")
    for key, value in node.items():
        if key in SPECIAL:
            continue
        if key not in parameters:
            if not open_ended:
                known = [n for n in parameters if n not in AVAILABLE]
                unknown = describe_unknown(key, known)
                now = MOVED.get(f"{path}.{key}")
                mistakes.append(f"{path}.{key}: {f'it is called {now} now' if now else unknown}")
        elif not is_target(value):
            mistakes += check_type(value, hints.get(key, Any), f"{path}.{key}")
    if not node.get("_partial_"):
        for wanted, parameter in parameters.items():
            if (
                parameter.default is parameter.empty
                and wanted not in node
                and wanted not in AVAILABLE
            ):
                mistakes.append(f"{path}.{wanted} is not set, and {name} needs it")
    return mistakes


def _near_target(node: Mapping[str, Any]) -> str:
    module, _, name = str(node["_target_"]).rpartition(".")
    try:
        known = [n for n in vars(resolve_name(module)) if not n.startswith("_")]
    except (Exception, SystemExit):
        return f": there is no module {module!r}"
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {module}.{near[0]}?" if near else f": {module} has no {name!r}"
