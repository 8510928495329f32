"""A finished student as a network again, from its run directory or from its file alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.build import build
from core.check import check_node
from data.transforms import Transform
from engine.networks import build_network
from engine.ownership import mapping
from engine.trust import read_found
from models.checkpoint import load_weights, read_metadata, taken
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
    return load_student(run / FILE, node, trust_checked(run, trust, "transform"))


def architecture(run: Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The node that describes the student's network in a run directory.

    Args:
        run: the directory. What its ``config.yaml`` may name: see :func:`engine.trust.read_found`.
        trust: top-level modules that it may name besides, such as ``["audio"]``.

    Raises:
        ValueError: for a folder that is not a run directory, and for any other ``_target_``.
    """
    node = trust_checked(run, trust, "model")
    assert node is not None, "every student has a model"
    return node


def trust_checked(run: Path, trust: Sequence[str], key: str) -> dict[str, Any] | None:
    """A node of the deployed student in a run directory, once it is known to run no code.

    Args:
        key: ``model`` or ``transform``; the second may be None.

    Raises:
        ValueError: see :func:`architecture`.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is not a run directory: it has no config.yaml")
    config = mapping(path)  # read_found says what is wrong with it
    where = deployed(config, path)
    if key == "transform" and _at(config, f"{where}.{key}") is None:
        return None
    node = dict(_at(read_found(path, trust, f"{where}.{key}"), f"{where}.{key}"))
    node.pop("_training_", None)
    if mistakes := check_node(node, f"{where}.{key}"):
        raise ValueError("\n".join(f"{path}: {m}" for m in mistakes))
    return node


def _at(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, or None."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def deployed(config: Mapping[str, Any], path: Path) -> str:
    """Where the deployed student stands in a run's configuration; of an average, what it averages.

    Raises:
        ValueError: for a branch, whose file holds its trunk's weights as well.
    """
    name = config.get("deploy", "student")
    average = (config.get("teachers") or {}).get(name)
    if average:
        name = average.get("of", "student")
    where = "student" if name == "student" else f"students.{name}"
    if where != "student" and config["students"][name].get("of"):
        raise ValueError(f"{path}: the deployed network is a branch, which only its run can build")
    return where


def load_student(
    file: Path, node: dict[str, Any], seen: dict[str, Any] | None = None
) -> Classifier:
    """The network that ``node`` describes with the weights in ``file``, frozen, on the CPU.

    Args:
        file: written by a run: it says what its inputs are and how many classes there are.
        node: as under ``student.model``; what it names is imported.
        seen: as under ``student.transform``.

    Raises:
        ValueError: for a file that does not say so, or that holds another network.
    """
    metadata = load_weights(file)[1]
    spec, classes, count = read_metadata(metadata, file)
    if spec is None or not count:
        raise ValueError(
            f"{file} does not say what its inputs and classes are: a {FILE} that a run wrote does"
        )
    try:
        module = build_network(node, spec.shape, classes or ("",) * count, spec=spec)
    except (RuntimeError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the network of {file} cannot be built: {reason}") from error
    student = freeze(load_classifier(module, file))
    if seen is not None:
        takes = taken(metadata, file)
        transform: Transform = build(seen, Transform, "student.transform", spec=takes)
        student = freeze(
            Classifier(module, spec, student.classes, transform=transform, takes=takes)
        )
    check_network(student, count)
    return student
