"""Build what a configuration describes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from engine.check import SPECIAL, is_target, parameters_of


def build(node: Any, **available: Any) -> Any:
    """Build a plain configuration node, deepest part first.

    A target receives the node's own keys and, of ``available``, those that its signature names:
    a part says what it needs by naming an argument, and nothing is passed through by hand.
    ``_partial_: true`` gives a function that waits for the rest, as optimizers do for parameters.
    """
    if isinstance(node, Mapping):
        built = {k: build(v, **available) for k, v in node.items() if k not in SPECIAL}
        if not is_target(node):
            return built
        target = resolve_name(node["_target_"])
        if node.get("_partial_"):
            return functools.partial(target, **built)
        wanted, _ = parameters_of(target)
        injected = {k: v for k, v in available.items() if k in wanted and k not in built}
        return target(**injected, **built)
    if isinstance(node, list):
        return [build(v, **available) for v in node]
    return node
