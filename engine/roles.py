"""Who takes part in a run: students, teachers and views, and which loss joins which of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from core.build import build
from distillers.distiller import Distiller
from distillers.edges import asked, resolve_taps, taps_of
from distillers.step import INPUT, Teacher, View
from engine.names import check_names, check_new, check_used, expand
from engine.networks import build_objective
from engine.pairing import pair_up
from engine.student_builder import StudentBuilder
from engine.warm_start import copies_teacher
from models.classifier import Classifier

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
        ValueError: for names that do not exist or are not used, and losses that fit no network.
    """
    runtime, pairs = available["runtime"], config["source"].get("pairs") or {}
    check_new(config["students"], config["teachers"], config["views"], pairs)
    builder = StudentBuilder(config, available)
    entries, edges = expand(config["distiller"]["losses"], builder.nodes)
    objective = build_objective({"losses": entries}, "distiller", **available)
    modules, notes = builder.modules()
    parts = _parts("teachers", Teacher, config, available)
    views = _parts("views", View, config, available)
    frozen = {name: net for name, net in networks.items() if name != "teacher"}
    known = {*builder.nodes, *parts, *networks}
    check_names(edges, parts, views, known, {INPUT, *views, *pairs}, config["deploy"])
    edges = pair_up(config, available["data"], edges, objective, parts, views)
    used = asked(objective, edges, parts, views) | {config["deploy"]}
    check_used(parts, frozen, views, used)
    inside = modules | {name: net.module for name, net in frozen.items()}
    resolve_taps(objective, modules["student"], available["teacher"], edges, inside)
    branches = builder.branches(modules)
    students, lines = builder.students(modules, taps_of(objective, edges, parts, branches))
    first = students.pop("student")
    more: dict[str, Any] = {"edges": edges, "students": students, "teachers": frozen | parts}
    more |= {"views": views, "branches": branches, "labels": config["distiller"]["labels"]}
    distiller = Distiller(first, objective, available["teacher"], runtime, **more)
    distiller.keeps_asking = bool(config["data_free"])  # a source of real data keeps no answers
    runtime.prepare(distiller)
    notes += _idle(config, used)
    return distiller, [*notes, *lines, *(f"adapter: {line}" for line in distiller.adaptations)]


def _idle(config: Mapping[str, Any], used: set[str]) -> list[str]:
    """A line where the run has a teacher that nothing asks."""
    if "teacher" in used or config["data_free"] or not config["needs_teacher"]:
        return []
    if copies_teacher(config):
        return []
    return ["teacher: no loss asks it, and it is only compared with; needs_teacher=false saves it"]


def _parts(
    group: str, kind: type[Kind], config: Mapping[str, Any], available: Mapping[str, Any]
) -> dict[str, Kind]:
    """What is built under ``teachers`` or ``views``; networks are not."""
    return {
        name: build(node, kind, f"{group}.{name}", **available)
        for name, node in config[group].items()
        if "_target_" in node
    }
