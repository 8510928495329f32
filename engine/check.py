"""Hold configuration nodes against the signatures of what they build."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from torch import Tensor, nn

SPECIAL = {"_target_", "_partial_", "_training_"}  # never arguments of the target

# What the engine hands to any target whose signature names it (see engine.build).
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
    "objective",
    "steps",
    "batch_size",
}


def describe_unknown(name: str, known: Sequence[str]) -> str:
    """A line on a name that does not exist: what was probably meant, or all there is."""
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if near:
        return f"no {name!r}; did you mean {near[0]!r}?"
    return f"no {name!r}; there is: {', '.join(known) or 'nothing to set here'}"


def is_target(node: Any) -> bool:
    """Whether a node (plain or OmegaConf) builds something."""
    return (isinstance(node, Mapping) or OmegaConf.is_dict(node)) and "_target_" in node


def parameters_of(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters that a callable takes by name, and whether it takes any other keyword."""
    parameters = inspect.signature(target).parameters
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
    elif isinstance(node, str) and node == "???":
        mistakes.append(f"{path} is not set and has no default: give {path}=...")
    return mistakes


def _check_target(node: Mapping[str, Any], path: str) -> list[str]:
    try:
        target = resolve_name(node["_target_"])
    except Exception:  # an import can raise anything; what the user can mend is the name
        return [f"{path}._target_: cannot import {node['_target_']!r}{_near_target(node)}"]
    if not callable(target):
        return [f"{path}._target_: {node['_target_']!r} is nothing that builds a part"]
    parameters, open_ended = parameters_of(target)
    hints = _hints(target)
    mistakes = []
    for key, value in node.items():
        if key in SPECIAL:
            continue
        if key not in parameters:
            if not open_ended:
                known = [n for n in parameters if n not in AVAILABLE]
                mistakes.append(f"{path}.{key}: {describe_unknown(key, known)}")
        elif not is_target(value):
            mistakes += check_type(value, hints.get(key, Any), f"{path}.{key}")
    if not node.get("_partial_"):
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in node and name not in AVAILABLE:
                mistakes.append(f"{path}.{name} is not set, and {node['_target_']} needs it")
    return mistakes


def _near_target(node: Mapping[str, Any]) -> str:
    module, _, name = str(node["_target_"]).rpartition(".")
    try:
        known = [n for n in vars(resolve_name(module)) if not n.startswith("_")]
    except Exception:
        return f": there is no module {module!r}"
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {module}.{near[0]}?" if near else f": {module} has no {name!r}"


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # a library's annotation that does not evaluate: names are still checked
        return {}


def check_type(value: Any, annotation: Any, path: str) -> list[str]:
    """A mistake where a plain value cannot be what the annotation says; none where it may be."""
    if _fits(value, annotation):
        return []
    return [f"{path}={value!r} should be {_say(annotation)}"]


def _fits(value: Any, annotation: Any) -> bool:
    origin, args = get_origin(annotation), get_args(annotation)
    if isinstance(value, str) and value == "???":
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if annotation is type(None) or annotation is None:
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    container = origin or annotation
    parts = (nn.Module, Tensor)
    if container is Callable or (inspect.isclass(container) and issubclass(container, parts)):
        return False  # a plain value is neither; a node with a _target_ is not checked here
    if inspect.isclass(container) and issubclass(container, Mapping):
        return isinstance(value, Mapping)
    if inspect.isclass(container) and issubclass(container, Sequence):
        ok = isinstance(value, (list, tuple))
        return ok and (not args or all(_fits(v, args[0]) or is_target(v) for v in value))
    return True  # what a nested node builds, or an annotation that says nothing of plain values


def _say(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_say(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if annotation is type(None):
        return "null"
    return names.get(annotation, str(annotation).replace("typing.", ""))
