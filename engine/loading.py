"""The lines that load a student elsewhere, as its model card shows them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

from core.check import SPECIAL, parameters_of
from data.spec import InputSpec
from models.external import torchvision_arguments

LIBRARIES = {  # what builds their networks by name, with the keys that say the sizes
    "models.external.torchvision_model": "torchvision.models.get_model",
    "models.external.timm_model": "timm.create_model",
}


def needs_source(node: Mapping[str, Any]) -> bool:
    """Whether the network that ``node`` describes is neither torchvision's nor timm's."""
    return node["_target_"] not in LIBRARIES


def loading_lines(
    node: Mapping[str, Any], spec: InputSpec, num_classes: int, file: str = "student.safetensors"
) -> str:
    """Five lines that load a student in plain PyTorch, after a comment where source is needed.

    They read ``x``, float32 [N, *shape] in the value range, and leave ``logits`` [N, C]. A network
    of torchvision or timm needs that library and nothing of this project. Any other needs its
    source on the path; what needs none is an export, see :func:`exported_lines`.

    Args:
        node: plain, as under ``student.model`` in a run's configuration.
        spec: what the student expects.
        num_classes: of the student.
        file: path of the student's file.
    """
    modules = {"torch", "safetensors.torch"}
    sizes = {"in_channels": spec.shape[0], "input_size": spec.shape[1:], "num_classes": num_classes}
    sizes |= {"spec": replace(spec, columns=())}  # which no network reads
    network = _expression(node, sizes, modules)
    ones = (1,) * (len(spec.shape) - 1)
    moments = [list(spec.mean), list(spec.std)]
    lines = [
        f"import {', '.join(sorted(modules))}",
        f"model = {network}.eval()",
        f"model.load_state_dict(safetensors.torch.load_file({json.dumps(file)}))",
        f"mean, std = torch.tensor({moments}).view{(2, spec.shape[0], *ones)}",
        f"logits = model((x - mean) / std)  # x: {_expected(spec)}",
    ]
    if spec.kind.discrete:  # which is not normalised
        lines[-2:] = [f"logits = model(x)  # x: {_expected(spec)}"]
    if needs_source(node):
        own = " and ".join(sorted(modules - {"torch", "safetensors.torch", "functools"}))
        lines.insert(0, f"# needs the source of {own}, with what it imports, on the path")
    return "\n".join(lines)


def exported_lines(spec: InputSpec, file: str = "student.pt2") -> str:
    """Three lines that run an export of ``tools.export`` with PyTorch alone, whatever the network.

    They read ``x`` and leave ``logits``, as :func:`loading_lines` does.
    """
    return "\n".join(
        [
            "import torch",
            f"model = torch.export.load({json.dumps(file)}).module()",
            f"logits = model(x)  # x: {_expected(spec)}; normalised inside",
        ]
    )


def _expected(spec: InputSpec) -> str:
    low, high = spec.range
    return f"float32 [N, {', '.join(map(str, spec.shape))}] with values from {low:g} to {high:g}"


def _expression(node: Any, sizes: Mapping[str, Any], modules: set[str]) -> str:
    """Python that builds what ``core.build.build`` would; adds the modules that it names."""
    if isinstance(node, Mapping) and "_target_" in node:
        return _call(node, sizes, modules)
    if isinstance(node, Mapping):
        inside = (f"{k!r}: {_expression(v, sizes, modules)}" for k, v in node.items())
        return f"{{{', '.join(inside)}}}"
    if isinstance(node, list):
        return f"[{', '.join(_expression(v, sizes, modules) for v in node)}]"
    if isinstance(node, InputSpec):
        modules.add("data.spec")
        return f"data.spec.{node!r}"
    return repr(node)


def _call(node: Mapping[str, Any], sizes: Mapping[str, Any], modules: set[str]) -> str:
    target: str = node["_target_"]
    given = {k: v for k, v in node.items() if k not in SPECIAL}
    if target in LIBRARIES:
        return _library_call(target, given, sizes, modules)
    name = target.replace(":", ".")
    modules.add(_module(name))
    if node.get("_partial_"):
        modules.add("functools")
        first, injected = [name], {}
    else:
        wanted, _ = parameters_of(resolve_name(target))
        first = []
        injected = {k: v for k, v in sizes.items() if k in wanted and k not in given}
    called = "functools.partial" if first else name
    return f"{called}({', '.join([*first, *_keywords(injected | given, sizes, modules)])})"


def _library_call(
    target: str, given: Mapping[str, Any], sizes: Mapping[str, Any], modules: set[str]
) -> str:
    arguments = {k: v for k, v in given.items() if k != "name"}
    arguments["num_classes"] = sizes["num_classes"]
    if target.endswith("timm_model"):
        arguments["in_chans"] = sizes["in_channels"]
    else:
        arguments = torchvision_arguments(given["name"], arguments)
    called = LIBRARIES[target]
    modules.add(called.split(".")[0])
    return f"{called}({', '.join([repr(given['name']), *_keywords(arguments, sizes, modules)])})"


def _keywords(values: Mapping[str, Any], sizes: Mapping[str, Any], modules: set[str]) -> list[str]:
    return [f"{key}={_expression(value, sizes, modules)}" for key, value in values.items()]


def _module(name: str) -> str:
    """The module of a dotted name that was imported when the network was built."""
    parts = name.split(".")
    known = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    return next((module for module in known if module in sys.modules), parts[0])
