"""What a teacher expects of its input, from the user's keys, its file, or its library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.modality import modality_named, usual
from data.spec import EXPECTED, MORE, Expected
from models.checkpoint import before_transform, read_description
from models.external import library_defaults

ASSUMED = "assumed"  # the origin of what nothing says


def expected(teacher: Mapping[str, Any]) -> Expected:
    """What the user's keys, the checkpoint and the network's library say, in this order.

    Args:
        teacher: the node of the configuration.

    Raises:
        ValueError: for a checkpoint that cannot be read, or a count of classes below 2.
    """
    found = Expected({}, {})
    file = read_description(teacher["checkpoint"]) if teacher["checkpoint"] else {}
    library, defaults = library_defaults(teacher["model"])
    keys = {name: teacher[name] for name in EXPECTED if teacher[name] is not None}
    for values, origin in ((keys, "teacher.{}"), (file, "its file"), (defaults, library)):
        for name, value in values.items():
            if name not in found.values:
                found.values[name] = value
                found.origins[name] = origin.format(name)
    if "range" not in found.values:
        found.values["range"], found.origins["range"] = _natural(found.values), ASSUMED
    if "classes" in found.values:
        found.values["classes"] = _names(found.values["classes"])
    return found


def expected_of_data(teacher: Mapping[str, Any]) -> Expected:
    """The same of the data: of a teacher with a transform, what its file says comes before it.

    Raises:
        ValueError: as :func:`expected`.
    """
    found = expected(teacher)
    path = teacher["checkpoint"] if teacher.get("transform") else None
    if path and (before := before_transform(path)) is not None:
        for name in ("modality", *MORE):  # those of what the transform gives
            found.values.pop(name, None)
        said = {k: v for k, v in before.to_dict().items() if k != "shape" or not teacher["shape"]}
        found.values.update(said)
        found.origins.update(dict.fromkeys(said, "its file"))
    return found


def _natural(values: Mapping[str, Any]) -> tuple[float, float]:
    """The range of inputs of which nothing says it: that of their modality, if its rank tells."""
    try:
        name = values.get("modality") or usual(len(values["shape"]))
        return modality_named(name).natural
    except (KeyError, TypeError, ValueError):  # the data says it, or what is wrong
        return modality_named("image").natural


def _names(classes: int | Sequence[Any]) -> tuple[str, ...]:
    if isinstance(classes, int):
        if classes < 2:
            raise ValueError(f"teacher.classes={classes}: a classifier has at least 2")
        return tuple(str(i) for i in range(classes))
    return tuple(str(name) for name in classes)
