"""Who takes part in a run: students, teachers and views, and which loss joins which of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from core.build import build
from data.spec import InputSpec
from data.transforms import Transform
from distillers.base import stage_tap
from distillers.distiller import Distiller
from distillers.edges import asked, resolve_taps, taps_of
from distillers.step import INPUT, Teacher, View
from engine.names import check_names, check_new, check_used, expand
from engine.networks import build_network, build_objective
from engine.pairing import check_labels, pair_up
from engine.warm_start import warm_start
from models.branch import Branch, feature_shape
from models.check import check_network
from models.classifier import Classifier
from models.taps import named_taps

Kind = TypeVar("Kind", bound=nn.Module)


def build_distiller(
    config: Mapping[str, Any],
    available: Mapping[str, Any],
    networks: Mapping[str, Classifier],
) -> tuple[Distiller, list[str]]:
    """The students, whose taps the losses decide, and the distiller around them, on the device.

    Args:
        config: plain settings.
        available: what parts may name as arguments.
        networks: the teachers that are networks, by name.

    Returns:
        The distiller, and lines on what students return and on what joins features that differ.

    Raises:
        ValueError: for names that do not exist, teachers that nothing asks, and losses that do not
            fit the networks.
    """
    runtime, pairs = available["runtime"], config["source"].get("pairs") or {}
    check_new(config["students"], config["teachers"], config["views"], pairs)
    nodes = {"student": config["student"], **config["students"]}
    entries, edges = expand(config["distiller"]["losses"], nodes)
    objective = build_objective({"losses": entries}, "distiller", **available)
    modules, notes = _modules(nodes, available)
    parts = _parts("teachers", Teacher, config, available)
    views = _parts("views", View, config, available)
    frozen = {name: network for name, network in networks.items() if name != "teacher"}
    known = {*nodes, *parts, *networks}
    check_names(edges, parts, views, known, {INPUT, *views, *pairs}, config["deploy"])
    check_labels(config["source"], parts, views)
    edges = pair_up(config, available["data"], edges, objective, parts, views)
    check_used(parts, frozen, views, asked(objective, edges, parts, views) | {config["deploy"]})
    inside = modules | {name: network.module for name, network in frozen.items()}
    resolve_taps(objective, modules["student"], available["teacher"], edges, inside)
    branches = {n: (nodes[n]["of"], m.tap) for n, m in modules.items() if isinstance(m, Branch)}
    taps = taps_of(objective, edges, parts, branches)
    students, lines = _students(nodes, modules, taps, available)
    first, others = students.pop("student"), {**frozen, **parts}
    more: dict[str, Any] = {"edges": edges, "students": students, "teachers": others}
    more |= {"views": views, "branches": branches, "labels": config["distiller"]["labels"]}
    distiller = Distiller(first, objective, available["teacher"], runtime, **more)
    distiller.keeps_asking = bool(config["data_free"])  # a source of real data keeps no answers
    runtime.prepare(distiller)
    return distiller, [*notes, *lines, *(f"adapter: {line}" for line in distiller.adaptations)]


def student_spec(
    node: Mapping[str, Any], path: str, available: Mapping[str, Any]
) -> tuple[InputSpec, Transform | None]:
    """What a student's module expects, and the transform that shows it the data's inputs.

    Raises:
        ValueError: for a transform without mean and std.
    """
    takes = available["spec"]
    given = {key: tuple(node[key]) for key in ("mean", "std") if node.get(key) is not None}
    moments: dict[str, Any] = dict(given)
    if node.get("transform") is None:
        return replace(takes, **moments), None
    transform: Transform = build(node["transform"], Transform, f"{path}.transform", **available)
    if len(moments) < 2:
        raise ValueError(f"{path}.transform needs {path}.mean and {path}.std")
    # on the host, where the network still is that is checked with it
    seen = transform.measured(takes, takes.noise(64, torch.device("cpu")))
    return replace(seen, **moments), transform


def _modules(
    nodes: Mapping[str, Mapping[str, Any]], available: Mapping[str, Any]
) -> tuple[dict[str, nn.Module], list[str]]:
    """The students' networks, in the order of the configuration: a branch follows its trunk.

    Returns:
        The networks, and a line on each that does not begin with random weights.
    """
    modules: dict[str, nn.Module] = {}
    lines = []
    for name, node in nodes.items():
        modules[name] = _module(name, node, nodes, modules, available)
        if node.get("checkpoint"):
            spec = student_spec(*_trunk(name, nodes), available)[0]
            lines.append(warm_start(modules[name], node, _path(name), spec, available))
    return modules, lines


def _module(
    name: str,
    node: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]],
    modules: Mapping[str, nn.Module],
    available: Mapping[str, Any],
) -> nn.Module:
    """A student's network; a branch together with the trunk that it shares."""
    path, classes = _path(name), available["classes"]
    if node.get("of") is None:
        spec = student_spec(node, path, available)[0]
        return build_network(node["model"], spec.shape, classes, f"{path}.model", spec)
    if node.get("transform") is not None:
        raise ValueError(f"{path} is a branch, which sees what its trunk sees: no transform")
    if (trunk := modules.get(node["of"])) is None:
        raise ValueError(f"{path}.of={node['of']} is no student that comes before it")
    spec = student_spec(*_trunk(name, nodes), available)[0]
    x = spec.normalize(spec.noise(2, torch.device("cpu")))
    tap = stage_tap(node["tap"], named_taps(trunk), node["of"])
    shape = feature_shape(trunk, tap, x)
    return Branch(trunk, tap, build_network(node["model"], shape, classes, f"{path}.model"))


def _trunk(name: str, nodes: Mapping[str, Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """The node of a student, or of the trunk that it is a branch of, and where it stands."""
    while nodes[name].get("of"):
        name = nodes[name]["of"]
    return nodes[name], _path(name)


def _students(
    nodes: Mapping[str, Mapping[str, Any]],
    modules: Mapping[str, nn.Module],
    taps: Mapping[str, tuple[str, ...]],
    available: Mapping[str, Any],
) -> tuple[dict[str, Classifier], list[str]]:
    """The students on the device, and lines on what their networks return in training."""
    classes, takes = available["classes"], available["spec"]
    students, lines = {}, []
    for name, module in modules.items():
        spec, transform = student_spec(*_trunk(name, nodes), available)
        wanted = taps.get(name, ())
        student = Classifier(module, spec, classes, wanted, transform=transform, takes=takes)
        if line := check_network(student, len(classes), training=True):
            lines.append(f"{name}: {line}")
        students[name] = student
    for student in students.values():  # a branch that is checked shares its trunk's device
        available["runtime"].prepare(student)
    return students, lines


def _path(name: str) -> str:
    """Where a student stands in the configuration."""
    return name if name == "student" else f"students.{name}"


def _parts(
    group: str, kind: type[Kind], config: Mapping[str, Any], available: Mapping[str, Any]
) -> dict[str, Kind]:
    """What is built under ``teachers`` or ``views``; networks are not."""
    return {
        name: build(node, kind, f"{group}.{name}", **available)
        for name, node in config[group].items()
        if "_target_" in node
    }
