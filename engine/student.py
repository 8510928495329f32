"""A finished student as a network again, from its run directory or from its file alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from engine.check import check_node
from engine.config import ROOT
from engine.parts import build_network
from models.checkpoint import load_weights, read_metadata
from models.classifier import Classifier
from models.teacher import check_network, freeze, load_classifier

FILE = "student.safetensors"  # in a run directory


def student_of(run: Path, trust: Sequence[str] = ()) -> Classifier:
    """The student of a finished run, frozen, on the CPU.

    Args:
        run: a run directory, which somebody else may have written; it runs no code.
        trust: see :func:`architecture`.

    Raises:
        ValueError: see :func:`architecture` and :func:`load_student`.
    """
    node = architecture(run, trust)
    if not (run / FILE).is_file():
        raise ValueError(
            f"{run} holds no student yet ({FILE} is written when the run is finished): run the "
            "same command again to finish it"
        )
    return load_student(run / FILE, node)


def architecture(run: Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The node that describes the student's network in a run directory.

    Args:
        run: the directory. Its ``config.yaml`` may name the networks of ``configs/model``.
        trust: top-level modules that it may name besides, such as ``["audio"]``.

    Raises:
        ValueError: for a folder that is no run directory, and for any other ``_target_``.
    """
    config = settings(run)
    student = config.get("student")
    node = student.get("model") if isinstance(student, Mapping) else None
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{run / 'config.yaml'} describes no network under student.model")
    node = {key: value for key, value in node.items() if key != "_training_"}
    for target in _targets(node):
        root = target.replace(":", ".").split(".")[0]
        if target not in _known() and root not in trust:
            raise ValueError(
                f"{run / 'config.yaml'} names {target}, which is no network of this project. "
                f"Where you trust what {root} holds, add trust=[{root}]"
            )
    if mistakes := check_node(node, "student.model"):
        raise ValueError("\n".join(f"{run / 'config.yaml'}: {m}" for m in mistakes))
    return node


def settings(run: Path) -> dict[str, Any]:
    """What ``config.yaml`` of a run directory says, as plain data: no interpolation is resolved.

    Raises:
        ValueError: for a folder that is no run directory, or where the file is damaged.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is no run directory: it has no config.yaml")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path} is damaged ({reason}): put a good copy there") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no configuration of a run")
    return config  # type: ignore[return-value]


def load_student(file: Path, node: dict[str, Any]) -> Classifier:
    """The network that ``node`` describes with the weights in ``file``, frozen, on the CPU.

    Args:
        file: written by a run: it says what its inputs are and how many classes there are.
        node: as under ``student.model``; what it names is imported.

    Raises:
        ValueError: for a file that does not say so, or that holds another network.
    """
    _, metadata = load_weights(file)
    spec, classes, count = read_metadata(metadata, file)
    if spec is None or not count:
        raise ValueError(
            f"{file} does not say what its inputs and classes are: a {FILE} that a run wrote does"
        )
    try:
        module = build_network(node, spec.shape, classes or ("",) * count)
    except (RuntimeError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the network of {file} cannot be built: {reason}") from error
    student = freeze(load_classifier(module, file))
    check_network(student, count)
    return student


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a node and below it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _targets(value)


@functools.cache
def _known() -> frozenset[str]:
    """What the files of ``configs/model`` build."""
    files = (ROOT / "model").glob("*.yaml")
    nodes = [OmegaConf.to_container(OmegaConf.load(file), resolve=False) for file in files]
    for node in nodes:
        assert isinstance(node, dict)
        node.pop("_training_", None)
    return frozenset(target for node in nodes for target in _targets(node))
