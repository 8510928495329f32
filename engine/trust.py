"""What a configuration by somebody else may name: nothing that runs their code."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import yaml
from torch import nn

from core.annotations import shorten
from core.check import MISSING
from data.dataset import Dataset
from data.transforms import Transform
from distillers.base import TransferLoss
from distillers.step import Teacher, View
from engine.choices import KEY, ROOT
from engine.user_parts import modules_in, user_folder
from generators.base import SynthesisLoss
from generators.networks import GeneratorNetwork
from generators.streams import Stream
from generators.variables import Variable

PACKAGES = ("core", "data", "distillers", "engine", "generators", "models")
LIBRARIES = ("torch.optim", "kornia.augmentation")
TAUGHT = (TransferLoss, Teacher, View)
BASES = (Dataset, Transform, *TAUGHT, SynthesisLoss, GeneratorNetwork, Variable, Stream)
LARGEST = 1_000_000  # bytes of a configuration; ours have some thousands
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)


def sort_trust(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules that a command vouches for, and its words less ``trust=[MODULE,...]``.

    ``config_path=DIR`` vouches for all modules in that folder, which can be imported from now on.

    Raises:
        ValueError: for names that cannot be read, or a folder with mistakes.
    """
    trusted: list[str] = []
    mistakes: list[str] = []
    for word in words:
        if word.startswith("trust="):
            match = re.fullmatch(r"trust=(?:\[([\w., ]*)\]|([\w.]*))", word)
            if not match:
                raise ValueError(f"cannot read {word!r}: write trust=[MODULE], with modules' names")
            names = re.findall(r"[\w.]+", match[1] or match[2] or "")
            trusted += [name.partition(".")[0] for name in names]
    if own := user_folder(words, mistakes):
        trusted += modules_in(own)
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return trusted, [word for word in words if not word.startswith("trust=")]


def trusted_alone(words: Sequence[str]) -> list[str]:
    """The modules that a command vouches for, where its words may say nothing else.

    Raises:
        ValueError: for any other word; see :func:`sort_trust`.
    """
    trusted, others = sort_trust(words)
    for word in others:
        if not word.startswith(f"{KEY}="):
            raise ValueError(f"cannot read {word!r}: write trust=[MODULE] or {KEY}=DIR")
    return trusted


def read_found(path: Path, trusted: Sequence[str] = (), part: str = "") -> dict[str, Any]:
    """The configuration in a run directory, as plain containers in which nothing is resolved.

    A run writes its values resolved, so that ``${...}`` in them is text. What its ``_target_`` may
    name: parts of this project (those with a YAML under ``configs/``, and subclasses of its base
    classes), optimizers of ``torch.optim`` and modules of ``kornia.augmentation``.

    Args:
        trusted: top-level modules beside these that the user vouches for.
        part: the key of the one node to check, if nothing else will be built.

    Raises:
        ValueError: for a file that is not a run's configuration, or names anything else.
    """
    try:
        text = path.read_text()
        if len(text) > LARGEST:
            raise ValueError("it is far too long")
        if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has aliases, which no run writes")
        config = yaml.safe_load(text)
        if not isinstance(config, dict) or not isinstance(config.get("choices"), dict):
            raise ValueError("it has no choices")
        asked = _below(config, part)
        refused = dict.fromkeys(name for name in _targets(asked) if not _is_safe(name, trusted))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a run's configuration: {shorten(reason, str)}") from error
    if refused:
        names = ", ".join(shorten(name) for name in list(refused)[:5])
        modules = dict.fromkeys(name.partition(".")[0] for name in refused if _is_name(name))
        never = {*PACKAGES, "torch", "kornia", *sys.stdlib_module_names}
        yours = ",".join(m for m in modules if m not in never)
        raise ValueError(
            f"{path} names {names}: no part of this project, so it is not built or imported"
            + (f". If that is code of yours, add trust=[{yours}]" if yours else "")
            + (f" or {KEY}=DIR, the folder of it" if yours and config.get(KEY) else "")
        )
    return config


def _below(config: dict[str, Any], part: str) -> Any:
    """The node at a dotted key."""
    node: Any = config
    for key in filter(None, part.split(".")):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or (part and "_target_" not in node):
        raise ValueError(f"it describes no part under {part}")
    return node


def _targets(node: Any) -> Iterator[Any]:
    """Every value of ``_target_``, at any depth."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from _targets(child)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _is_safe(name: Any, trusted: Sequence[str]) -> bool:
    """Decide by the text whether to import, and by what was imported whether to build."""
    if not _is_name(name):
        return False
    root = name.partition(".")[0]
    known = root in PACKAGES or name.startswith(tuple(f"{library}." for library in LIBRARIES))
    if not known and root not in trusted:
        return False
    try:
        part = resolve_name(name)
    except (Exception, SystemExit):
        if root in trusted:
            raise ValueError(
                f"cannot import {name}; if it lies in a folder of yours, add {KEY}=DIR"
            ) from None
        return False
    if not (inspect.isclass(part) or inspect.isfunction(part)):
        return False
    module = part.__module__
    if module.partition(".")[0] in trusted:
        return True
    if module.startswith("torch.optim."):
        return inspect.isclass(part) and issubclass(part, torch.optim.Optimizer)
    if module.startswith("kornia.augmentation."):
        return inspect.isclass(part) and issubclass(part, nn.Module)
    return _is_ours(module) and (
        part in _configured() or (inspect.isclass(part) and issubclass(part, BASES))
    )


def _is_ours(module: str) -> bool:
    """Whether a module's code lies in this project, whatever it is called."""
    file = getattr(sys.modules.get(module), "__file__", None)
    folders = [ROOT.parent / package for package in PACKAGES]
    return file is not None and any(Path(file).resolve().is_relative_to(f) for f in folders)


@functools.cache
def _configured() -> frozenset[Any]:
    """The parts that a file under ``configs/`` names."""
    files = [yaml.safe_load(file.read_text()) for file in ROOT.rglob("*.yaml")]
    named = {name for file in files for name in _targets(file)} - {MISSING}
    return frozenset(map(resolve_name, named))
