"""Who takes part in a run: students, teachers and views, and which loss joins which of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from core.build import build
from data.spec import InputSpec
from data.transforms import Transform
from distillers.distiller import Distiller
from distillers.edges import asked, resolve_taps, taps_of
from distillers.step import INPUT, Edge, Ref, Teacher, View
from engine.networks import build_network, build_objective
from models.branch import Branch, feature_shape
from models.check import check_network
from models.classifier import Classifier

OTHERS = "others"  # as a loss's teacher: every other student
OWN = {"student", "teacher", "reads"}  # keys of a loss's entry that are not its own arguments


def expand(
    losses: Mapping[str, Mapping[str, Any]], students: Iterable[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Edge]]:
    """One entry for each student and teacher of a loss, and its edge.

    An entry with several teachers stands for the mean over them.

    Args:
        losses: entries of ``distiller.losses``.
        students: the names of all students.
    """
    entries: dict[str, dict[str, Any]] = {}
    edges: dict[str, Edge] = {}
    for name, entry in losses.items():
        reads = {key: Ref.parse(text) for key, text in (entry.get("reads") or {}).items()}
        ours = _listed(entry.get("student", "student"))
        for ref in map(Ref.parse, ours):
            named = _listed(entry.get("teacher", "teacher"))
            if named == [OTHERS]:
                named = [other for other in students if other != ref.name]
            if not named:
                raise ValueError(f"the loss {name} has no teacher: there is no other student")
            for teacher in map(Ref.parse, named):
                parts = [name, *([str(ref)] if len(ours) > 1 else [])]
                parts += [str(teacher)] if len(named) > 1 else []
                key = "_".join(parts).replace(".", "_")
                entries[key] = {k: v for k, v in entry.items() if k not in OWN}
                if len(named) > 1:
                    entries[key]["weight"] = entry.get("weight", 1.0) / len(named)
                edges[key] = Edge(ref, teacher, reads)
    return entries, edges


def build_distiller(
    config: Mapping[str, Any],
    available: Mapping[str, Any],
    networks: Mapping[str, Classifier] | None = None,
) -> tuple[Distiller, list[str]]:
    """The students, whose taps the losses decide, and the distiller around them, on the device.

    Args:
        config: plain settings.
        available: what parts may name as arguments.
        networks: teachers besides ``teacher`` that are networks.

    Returns:
        The distiller, and lines on what students return and on what joins features that differ.

    Raises:
        ValueError: for names that do not exist, teachers that nothing asks, and losses that do not
            fit the networks.
    """
    teacher, runtime = available["teacher"], available["runtime"]
    nodes = {"student": config["student"], **config["students"]}
    entries, edges = expand(config["distiller"]["losses"], nodes)
    objective = build_objective({"losses": entries}, "distiller", **available)
    modules: dict[str, nn.Module] = {}
    for name, node in nodes.items():
        modules[name] = _module(name, node, modules, available)
    parts = _teachers(config, available)
    views = {
        name: build(node, View, f"views.{name}", **available)
        for name, node in config["views"].items()
    }
    frozen = dict(networks or {})
    known = {*nodes, *parts, *frozen, *(["teacher"] if teacher else [])}
    shown = {INPUT, *views, *(config["source"].get("pairs") or {})}
    _check_names(edges, parts, views, known, shown, config["deploy"])
    others = {name: network.module for name, network in frozen.items()}
    resolve_taps(objective, modules["student"], teacher, edges, {**modules, **others})
    branches = {n: (node["of"], node["tap"]) for n, node in nodes.items() if node.get("of")}
    taps = taps_of(objective, edges, parts, branches)
    students, notes = {}, []
    for name, module in modules.items():
        students[name], line = _student(name, nodes[name], module, taps, available)
        notes += [f"{name}: {line}"] if line else []
    used = asked(objective, edges, parts, views) | {config["deploy"]}
    _check_used(parts, frozen, views, used)
    distiller = Distiller(
        students.pop("student"),
        objective,
        teacher,
        runtime,
        config["distiller"]["labels"],
        edges=edges,
        students=students,
        teachers={**frozen, **parts},
        views=views,
        branches=branches,
    )
    runtime.prepare(distiller)
    return distiller, [*notes, *(f"adapter: {line}" for line in distiller.adaptations)]


def student_spec(
    node: Mapping[str, Any], path: str, available: Mapping[str, Any]
) -> tuple[InputSpec, Transform | None]:
    """What a student's module expects, and the transform that shows it the data's inputs.

    Raises:
        ValueError: for a transform without mean and std.
    """
    takes = available["spec"]
    if node.get("transform") is None:
        return takes, None
    transform: Transform = build(node["transform"], Transform, f"{path}.transform", **available)
    noise = takes.noise(64, available["runtime"].device)
    if node.get("mean") is None or node.get("std") is None:
        raise ValueError(f"{path}.transform needs {path}.mean and {path}.std")
    seen = transform.measured(takes, noise)
    if node["mean"] == "noise":  # of a trial, before anything can be measured
        return seen, transform
    return InputSpec(seen.shape, seen.range, tuple(node["mean"]), tuple(node["std"])), transform


def _module(
    name: str,
    node: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    available: Mapping[str, Any],
) -> nn.Module:
    """A student's network; a branch together with the trunk that it shares."""
    path, classes = _path(name), available["classes"]
    spec, transform = student_spec(node, path, available)
    if node.get("of") is None:
        return build_network(node["model"], spec.shape, classes, f"{path}.model")
    if transform is not None:
        raise ValueError(f"{path} is a branch, which sees what its trunk sees: no transform")
    if (trunk := modules.get(node["of"])) is None:
        raise ValueError(f"{path}.of={node['of']} is no student that comes before it")
    x = spec.normalize(spec.noise(2, torch.device("cpu")))
    shape = feature_shape(trunk, node["tap"], x)
    return Branch(trunk, node["tap"], build_network(node["model"], shape, classes, f"{path}.model"))


def _student(
    name: str,
    node: Mapping[str, Any],
    module: nn.Module,
    taps: Mapping[str, tuple[str, ...]],
    available: Mapping[str, Any],
) -> tuple[Classifier, str | None]:
    """A student on the device, and a line on what its network returns, if there is one."""
    classes, takes = available["classes"], available["spec"]
    spec, transform = student_spec(node, _path(name), available)
    wanted = taps.get(name, ())
    student = Classifier(module, spec, classes, wanted, transform=transform, takes=takes)
    line = check_network(student, len(classes), training=True)
    available["runtime"].prepare(student)
    return student, line


def _path(name: str) -> str:
    """Where a student stands in the configuration."""
    return name if name == "student" else f"students.{name}"


def _teachers(config: Mapping[str, Any], available: Mapping[str, Any]) -> dict[str, Teacher]:
    return {
        name: build(node, Teacher, f"teachers.{name}", **available)
        for name, node in config["teachers"].items()
        if "_target_" in node
    }


def _check_names(
    edges: Mapping[str, Edge],
    parts: Mapping[str, Teacher],
    views: Mapping[str, View],
    known: set[str],
    shown: set[str],
    deploy: str,
) -> None:
    """Raise a ValueError for a name that does not exist."""
    named = [("deploy", Ref.parse(deploy))]
    for name, edge in edges.items():
        refs = [edge.student, *edge.reads.values()]
        refs += [edge.teacher] if edge.teacher.name != "teacher" else []  # whose lack is said later
        named += [(f"the loss {name}", ref) for ref in refs]
    for group, found in (("teachers", parts), ("views", views)):
        named += [
            (f"{group}.{n}", Ref.parse(text)) for n, part in found.items() for text in part.of
        ]
    for who, ref in named:
        for name, there, what in ((ref.name, known, "network"), (ref.view, shown, "view")):
            if name not in there:
                near = difflib.get_close_matches(name, there, 1)
                choice = f"there is: {', '.join(sorted(there))}"
                hint = f"did you mean {near[0]}?" if near else choice
                raise ValueError(f"{who} names the {what} {name!r}, which does not exist; {hint}")


def _check_used(
    parts: Mapping[str, Teacher],
    frozen: Mapping[str, Classifier],
    views: Mapping[str, View],
    used: set[str],
) -> None:
    """Raise a ValueError for a teacher or a view that nothing asks."""
    idle = [f"teachers.{name}" for name in (*parts, *frozen) if name not in used]
    idle += [f"views.{name}" for name in views if f"@{name}" not in used]
    if idle:
        raise ValueError(f"nothing asks {', '.join(idle)}: name it in a loss, or leave it out")


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
