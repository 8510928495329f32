"""The teacher in a checkpoint, checked against the data; and one that is untrained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from core.build import build
from core.check import parameters_of
from core.runtime import Runtime
from data.dataset import Dataset
from data.notes import note
from data.spec import InputSpec
from data.transforms import Transform
from engine.expected import ASSUMED, expected
from engine.networks import build_network
from models.checkpoint import before_transform, saved_transform
from models.classifier import Classifier
from models.external import library_defaults
from models.pretrained import freeze, load_classifier

# Errors of a network that is built for other inputs or classes than its file's.
MISFIT = re.compile("of another shape|logits of shape|cannot take inputs")


def blank_teacher(config: dict[str, Any], dataset: Dataset) -> Classifier:
    """The teacher's architecture, untrained; a file or the user gives its normalisation."""
    node = config["teacher"]
    shape, transform, takes = dataset.shape, None, None
    seen: tuple[Any, ...] = (dataset.range, *dataset.known)
    if node["transform"] is not None:
        takes = dataset.before_transform()
        transform = build(node["transform"], Transform, "teacher.transform", spec=takes)
        shown = transform.measured(takes, takes.noise(64, torch.device("cpu")))
        shape, seen = shown.shape, (shown.range, shown.modality, shown.rate)
    spec = InputSpec.unscaled(shape, *seen)
    module = build_network(node["model"], shape, dataset.classes, "teacher.model", spec)
    return Classifier(module, spec, dataset.classes, transform=transform, takes=takes)


def load_teacher(
    config: dict[str, Any], path: str, dataset: Dataset, runtime: Runtime
) -> Classifier:
    """The frozen teacher in a checkpoint, checked against the data."""
    node, say = config["teacher"], print if runtime.main else str  # str says nothing
    known = expected(node)
    _check_keys(node, dataset)
    check_before(path, node, "teacher", dataset, runtime)
    try:
        blank = blank_teacher(config, dataset)
        teacher = load_classifier(
            blank.module,
            path,
            blank.spec,
            known.values.get("mean"),
            known.values.get("std"),
            dataset.classes,
            range=None if known.origins["range"] == ASSUMED else known.values["range"],
            weights=node["weights"],
            say=say,
        )
    except ValueError as error:
        if dataset.has("test") or not MISFIT.search(str(error)):
            raise
        raise ValueError(
            f"{error}. Without data, {len(known.classes)} classes{known.origin('classes')} and "
            f"inputs of shape {list(dataset.shape)}{known.origin('shape')} are assumed: give other "
            "teacher.classes=... or teacher.shape=..., or settings of the network's own as "
            "teacher.model.KEY=..."
        ) from error
    if blank.transform is not None:
        check_seen(teacher.spec, blank.spec, path)
        found = teacher.module, teacher.spec, teacher.classes
        teacher = Classifier(*found, transform=blank.transform, takes=blank.takes)
    check_names(teacher.classes, dataset, path)
    dataset.adapt(teacher.takes, len(teacher.classes))
    if (origin := known.origins.get("mean")) == library_defaults(node["model"])[0]:
        moments = f"teacher.mean={list(teacher.spec.mean)} teacher.std={list(teacher.spec.std)}"
        say(f"teacher: its inputs are normalised as for {origin}: {moments}")
    runtime.prepare(freeze(teacher))
    return teacher


def check_before(
    path: str, node: Mapping[str, Any], where: str, dataset: Dataset, runtime: Runtime
) -> None:
    """Check what a file says of its network's transform against the data and the run's.

    Args:
        node: as under ``teacher``.
        where: its place.

    Raises:
        ValueError: for another transform, or one of other inputs.
    """
    if (before := before_transform(path)) is None:
        return
    if node.get("transform") is None:
        saw = f"saw {before.kind.plural} {list(before.shape)} through a transform"
        line = f"without {where}.transform=... it is shown the data as they are"
        note(runtime, f"{path} is of a network that {saw}: {line}")
        return
    check_transform(path, node["transform"])
    if "+" not in before.modality:  # of a pair it may be one half that counts
        dataset.check(before, dataset.num_classes)


def check_transform(path: Path | str, node: Mapping[str, Any]) -> None:
    """Check the transform that a network is to have against that of its file, which may not say.

    Raises:
        ValueError: for another one.
    """
    theirs = saved_transform(path)
    if theirs is not None and not alike(theirs, node):
        raise ValueError(
            f"{path} is of a network that saw its inputs through {json.dumps(theirs)}, and not "
            f"through {json.dumps(node)}: give the same transform"
        )


def alike(theirs: Any, ours: Any) -> bool:
    """Whether two nodes say the same, with the defaults of what ours names; theirs is not run."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        one, other = (list(x) if isinstance(x, tuple) else x for x in (theirs, ours))
        return bool(one == other)
    if theirs.get("_target_") != ours.get("_target_"):
        return False
    known = parameters_of(resolve_name(ours["_target_"]))[0] if "_target_" in ours else {}
    both = ({**{k: p.default for k, p in known.items()}, **node} for node in (theirs, ours))
    one, other = both
    return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)


def check_seen(expects: InputSpec, seen: InputSpec, path: str) -> None:
    """Raise a ValueError where a network's file expects other inputs than those it is shown."""
    ours, theirs = ((s.kind.plural, list(s.shape), list(s.range)) for s in (seen, expects))
    rates = {s.rate for s in (seen, expects) if s.rate is not None}
    if ours == theirs and len(rates) > 1:
        raise ValueError(
            f"{path} is of a network for {expects.rate:g} samples in a second, but the teacher is "
            f"shown {seen.rate:g}: resample the recordings, or choose another teacher"
        )
    if ours != theirs:
        takes, gets = ("{} {} with values in {}".format(*what) for what in (theirs, ours))
        raise ValueError(
            f"{path} is of a network for {takes}, but the teacher is shown {gets}: choose other "
            "data, another transform or another teacher"
        )


def check_names(classes: tuple[str, ...], dataset: Dataset, path: str) -> None:
    """Raise a ValueError where a class has another place in a file than among the data's.

    Numbers from 0 are no names: they stand where nobody gave any.
    """
    numbers = tuple(map(str, range(len(classes))))
    if numbers in (tuple(classes), tuple(dataset.classes)):
        return
    places = {name: k for k, name in enumerate(dataset.classes)}
    moved = [(k, name) for k, name in enumerate(classes) if places.get(name, k) != k]
    if moved:
        k, name = moved[0]
        raise ValueError(
            f"{path} has {name!r} as class {k}, but in data {dataset.name} it is class "
            f"{places[name]}: give the data the same classes, in the same order"
        )


def _check_keys(node: dict[str, Any], dataset: Dataset) -> None:
    """Check what the user says about a teacher's input against the data."""
    if node["shape"] is not None and tuple(node["shape"]) != dataset.shape:
        raise ValueError(
            f"teacher.shape={node['shape']}, but data {dataset.name} gives {list(dataset.shape)}: "
            "leave the key out, or choose other data or data.size"
        )
    if node["classes"] is not None and len(expected(node).classes) != len(dataset.classes):
        raise ValueError(
            f"teacher.classes names {len(expected(node).classes)} classes, but data "
            f"{dataset.name} has {len(dataset.classes)}: leave the key out, or choose other data"
        )
