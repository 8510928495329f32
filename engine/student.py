"""A finished student as a network again, from its run directory or from its file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.check import check_node
from engine.networks import build_network
from engine.trust import read_found
from models.checkpoint import load_weights, read_metadata
from models.classifier import Classifier
from models.pretrained import check_network, freeze, load_classifier

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
        run: the directory. What its ``config.yaml`` may name: see :func:`engine.trust.read_found`.
        trust: top-level modules that it may name besides, such as ``["audio"]``.

    Raises:
        ValueError: for a folder that is not a run directory, and for any other ``_target_``.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is not a run directory: it has no config.yaml")
    node = dict(read_found(path, trust, "student.model")["student"]["model"])
    node.pop("_training_", None)
    if mistakes := check_node(node, "student.model"):
        raise ValueError("\n".join(f"{path}: {m}" for m in mistakes))
    return node


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
