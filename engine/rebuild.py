"""The student that a run left, from its directory alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from data.spec import InputSpec
from engine.parts import build_network
from models.classifier import Classifier
from models.teacher import load_classifier, load_weights

STUDENT = "student.safetensors"


def student_of(run: Path, trust: Sequence[str] = ()) -> Classifier:
    """Build the network that a run's config.yaml describes, with the weights that the run left.

    Somebody else may have written the directory: what its configuration names is imported only
    where this project defines it, or where it lies in a package that the caller trusts.

    Args:
        run: a run directory.
        trust: top-level packages whose code may run, such as ``["audio"]``.

    Raises:
        ValueError: where there is no run or no student yet, for files that are damaged or do not
            fit together, and for a part that is not trusted.
    """
    node = _recorded(run)
    file = run / STUDENT
    if not file.is_file():
        raise ValueError(
            f"{run} has no {STUDENT}: the run is not finished; the command that began it goes on "
            "with it"
        )
    _, metadata = load_weights(file)
    try:
        spec = InputSpec(**json.loads(metadata["input"]))
        classes = tuple(json.loads(metadata["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: its metadata cannot be read: {error}") from None
    for target in _targets(node):
        _check_trusted(target, trust, run)
    return load_classifier(build_network(node, spec.shape, classes), file)


def _recorded(run: Path) -> dict[str, Any]:
    """The student's node in config.yaml, read as data: no tag and no interpolation is resolved."""
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is no run directory: it has no config.yaml")
    try:
        node = yaml.safe_load(path.read_text())["student"]["model"]
        assert isinstance(node["_target_"], str)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"{path} describes no student ({reason}): it is no run's") from None
    return node  # type: ignore[no-any-return]


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a node and below it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from _targets(child)


def _check_trusted(target: str, trust: Sequence[str], run: Path) -> None:
    """By its name before anything is imported, and by where the object is really from after."""
    allowed = {"models", *trust}
    root = target.partition(".")[0]
    if root in allowed:
        try:
            root = str(getattr(resolve_name(target), "__module__", "")).partition(".")[0]
        except Exception as error:  # an import can raise anything
            raise ValueError(f"{run / 'config.yaml'}: cannot import {target!r}: {error}") from None
    if root not in allowed:
        raise ValueError(
            f"{run / 'config.yaml'} names {target!r}, which is not this project's: where you trust "
            f"that code, add trust=[{target.partition('.')[0]}]"
        )
