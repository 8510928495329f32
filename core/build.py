"""Build what a configuration describes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, get_args, get_origin

import torch
from torch import Tensor, nn

from core.annotations import hints_of, is_part, say, shorten
from core.check import SPECIAL, is_target, parameters_of
from core.memory import check_weights, is_exhausted

# keys that provide a part
ONLY_WITH = {"observer": "synthesis", "synthesizer": "synthesizer", "teacher": "needs_teacher"}


def build(node: Any, kind: Any = Any, path: str = "", /, **available: Any) -> Any:
    """Build a plain configuration node, deepest part first.

    A target receives the node's own keys and, of ``available``, those that its signature names: a
    part says what it needs by naming an argument, and nothing is passed through by hand.
    ``_partial_: true`` returns a function of the missing arguments, as an optimizer's parameters.

    Args:
        kind: an annotation of what is needed here; each part below is checked against the
            annotation of its argument.
        path: of the node in the configuration, for messages.

    Raises:
        ValueError: if a part cannot be built, or is not of the kind that is needed.
    """
    if isinstance(node, Mapping):
        if is_target(node):
            return _part(node, kind, path, available)
        value = _item(kind, Mapping)
        return {k: build(v, value, f"{path}.{k}", **available) for k, v in node.items()}
    if isinstance(node, list):
        item = _item(kind, Sequence)
        return [build(v, item, f"{path}[{i}]", **available) for i, v in enumerate(node)]
    return node


def _part(node: Mapping[str, Any], kind: Any, path: str, available: dict[str, Any]) -> Any:
    target = resolve_name(node["_target_"])
    hints = hints_of(target)
    built = {
        k: build(v, hints.get(k, Any), f"{path}.{k}", **available)
        for k, v in node.items()
        if k not in SPECIAL
    }
    name = f"{path} ({node['_target_']})"
    if node.get("_partial_"):
        part: Any = functools.partial(target, **built)
        if inspect.isclass(target) and issubclass(target, torch.optim.Optimizer):
            _call(target, name, built, [torch.nn.Parameter(torch.zeros(1))])  # mistakes show now
    else:
        wanted, _ = parameters_of(target)
        injected = {k: v for k, v in available.items() if k in wanted and k not in built}
        for k, p in wanted.items():
            if p.default is p.empty and k not in built and k not in injected:
                key = ONLY_WITH.get(k)
                raise ValueError(
                    f"{name} needs {k}, which this run does not have"
                    + (f": see the key {key}" if key else "")
                )
        part = _network_or_other(target, name, hints, {**injected, **built})
    if not is_part(part, kind):
        gives = "a function" if inspect.isfunction(part) else f"a {type(part).__name__}"
        if isinstance(part, functools.partial):
            gives = f"a function (_partial_) that gives a {getattr(target, '__name__', target)}"
        raise ValueError(f"{name} gives {gives}, where {say(kind)} is needed")
    return part


def _network_or_other(
    target: Callable[..., Any], name: str, hints: dict[str, Any], arguments: dict[str, Any]
) -> Any:
    """Build a part; a network must fit into memory and have weights in every layer."""
    gives = hints.get("return")
    of_settings = not any(isinstance(v, (nn.Module, Tensor)) for v in arguments.values())
    if inspect.isclass(gives) and issubclass(gives, nn.Module) and of_settings:
        check_weights(functools.partial(target, **arguments), name)
    part = _call(target, name, arguments)
    if isinstance(part, nn.Module):
        for key, weight in part.named_parameters():
            if not nn.parameter.is_lazy(weight) and not weight.numel():
                raise ValueError(f"{name} has no weights in {key}: a size among its settings is 0")
    return part


def _call(target: Callable[..., Any], name: str, built: dict[str, Any], *first: Any) -> Any:
    """Build a part; any error that it raises is reported as a mistake in its settings."""
    try:
        return target(*first, **built)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        more = "takes more memory than there is" if is_exhausted(error) else "cannot be built"
        raise ValueError(f"{name} {more} with these settings: {shorten(reason, str)}") from error


def _item(kind: Any, container: type) -> Any:
    """The annotation of what a list or mapping holds, in one such as ``Sequence[X] | None``."""
    found = [k for k in (kind, *get_args(kind)) if isinstance(get_origin(k), type)]
    fitting = [k for k in found if issubclass(get_origin(k), container) and get_args(k)]
    return get_args(fitting[0])[-1] if fitting else Any
