"""What a run without data still needs to be told, asked for in one message."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from core.build import build
from core.check import MISSING, is_target
from data.spec import Expected
from engine.expected import expected, expected_of_data

NONE = "data.none.none"
EXAMPLES = {
    "teacher": ("NAME", "its architecture, such as resnet18 (see --help)"),
    "teacher.checkpoint": ("FILE", "the file of its weights"),
    "teacher.shape": ("[3,64,64]", "of one input, channels first"),
    "teacher.mean": ("[0.485,0.456,0.406]", "of each channel, for normalisation ([0,0,0]: none)"),
    "teacher.std": ("[0.229,0.224,0.225]", "likewise ([1,1,1]: none)"),
    "teacher.classes": ("10", "their number, or [NAME,...] in the order of its outputs"),
    "student": ("NAME", "its architecture (see --help)"),
}
SIZES = (1 / 30, 1 / 10, 1 / 3)  # of the teacher's parameters, near which students are proposed


def missing(
    config: Mapping[str, Any],
    arguments: Sequence[str],
    choices: Callable[[], Mapping[str, Mapping[str, Any]]],
) -> str | None:
    """What the configuration of a run without data lacks, and the command with a place for it.

    Args:
        config: plain settings, as far as they are known.
        arguments: of the command.
        choices: gives the nodes of all networks by name, to propose students.

    Returns:
        The message, or None where nothing is missing or there is data.
    """
    nodes = (config["data"]["dataset"], config["teacher"]["model"], config["student"]["model"])
    if not all(is_target(node) and isinstance(node["_target_"], str) for node in nodes):
        return None  # which the check says
    if nodes[0]["_target_"] != NONE:
        return None
    if not config["data_free"]:
        return "data=none has nothing to train on: choose a method without data (see --help)"
    teacher, wanted = config["teacher"], []
    if not _named(teacher):
        wanted.append("teacher")
    known = Expected({}, {})
    if not teacher["checkpoint"]:
        wanted.append("teacher.checkpoint")
    else:
        known = expected(teacher)
    keys = {name: teacher[name] for name in ("shape", "mean", "std", "classes")}
    wanted += [f"teacher.{name}" for name in keys if keys[name] is None and name in known.missing()]
    examples = dict(EXAMPLES)
    if not _named(config["student"]):
        wanted.append("student")
        if "shape" in known.values and known.classes:
            shown = tuple(expected_of_data(teacher).values["shape"])  # before a transform
            examples["student"] = _students(teacher, known, shown, choices())
    return _ask({name: examples[name] for name in wanted}, arguments) if wanted else None


def _ask(wanted: Mapping[str, tuple[str, str]], arguments: Sequence[str]) -> str:
    rows = [f"  {name:<19} {meaning}" for name, (_, meaning) in wanted.items()]
    examples = [f"{name}={example}" for name, (example, _) in wanted.items()]
    return "\n".join(
        [
            "a run without data starts from its teacher's file, and still needs:",
            *rows,
            "The whole command, with examples to replace:",
            f"  python train.py {' '.join([*map(shlex.quote, arguments), *examples])}",
        ]
    )


def _named(role: Mapping[str, Any]) -> bool:
    return role["model"].get("_target_", MISSING) != MISSING


def _students(
    teacher: Mapping[str, Any],
    known: Expected,
    shown: tuple[int, ...],
    choices: Mapping[str, Mapping[str, Any]],
) -> tuple[str, str]:
    """A student to put into the command, and three that fit, the smallest first."""
    shape, classes = tuple(known.values["shape"]), len(known.classes)
    reference = _size(teacher["model"], shape, classes) if _named(teacher) else None
    # which would take photographs too, and suits a teacher of spectrograms alone
    apart = {n for n, node in choices.items() if _apart(node) and not _apart(teacher["model"])}
    sizes = {n: _size(node, shown, classes) for n, node in choices.items() if n not in apart}
    fit = {name: size for name, size in sizes.items() if size}
    largest = reference or max(fit.values(), default=1)
    smaller = {name: size for name, size in fit.items() if size < largest}
    chosen: list[str] = []
    for share in SIZES:
        rest = [name for name in smaller if name not in chosen]
        if rest:
            aim = math.log(share * largest)
            chosen.append(min(rest, key=lambda name: abs(math.log(smaller[name]) - aim)))
    chosen.sort(key=lambda name: smaller[name])
    if not chosen:
        return EXAMPLES["student"]
    proposals = ", ".join(f"{name} ({say_size(smaller[name])})" for name in chosen)
    beside = f"; the teacher has {say_size(reference)}" if reference else ""
    inputs = "x".join(map(str, shape))
    return chosen[-1], f"one that fits {inputs} and {classes} classes: {proposals}{beside}"


def _apart(node: Mapping[str, Any]) -> bool:
    """Whether a network is for spectrograms only."""
    try:
        kind = resolve_name(str(node.get("_target_")))
    except (ImportError, AttributeError, ValueError):  # a name that does not exist, or is to come
        return False
    return bool(getattr(kind, "for_spectrograms", False))


def _size(node: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> int | None:
    """Parameters of a network, built without storage; None where it does not take such inputs."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng([]), torch.device("meta"):
            warnings.simplefilter("ignore")
            offered = {"in_channels": shape[0], "input_size": shape[1:], "num_classes": classes}
            network = build(node, nn.Module, "model", **offered).eval()
            if tuple(network(torch.zeros(2, *shape)).shape) != (2, classes):
                return None
    except Exception:  # networks reject inputs in many ways
        return None
    return sum(p.numel() for p in network.parameters())


def say_size(count: int) -> str:
    """A number of parameters in a few digits: "11.2 M parameters"."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name} parameters"
    return f"{count} parameters"
