"""Losses across modalities: which join networks that are shown different things, on what pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.objective import Objective
from data.dataset import Dataset
from data.pairs import PAIRED, Pair
from distillers.edges import transfer_losses
from distillers.step import INPUT, Edge, Ref, Teacher, View

ALONE = "method=soft_labels, or leave it out"


def check_synthesized(dataset: Dataset) -> None:
    """Refuse inputs that a run without data cannot make.

    Raises:
        ValueError: if a synthesizer knows no such inputs.
    """
    if not dataset.kind.synthesized:
        raise ValueError(
            f"data {dataset.name} are {dataset.kind.plural}, which nothing synthesizes: choose a "
            "method with real data (see --help), or inputs of one modality that a transform maps "
            "to the other, such as data=digits student.transform=edges"
        )


def check_labels(
    source: Mapping[str, Any], teachers: Mapping[str, Teacher], views: Mapping[str, View]
) -> None:
    """Refuse what reads a label of every input where not all have one.

    Raises:
        ValueError: naming it.
    """
    if source.get("labels") is None:
        return
    for group, parts in (("teachers", teachers), ("views", views)):
        for name, part in parts.items():
            if part.needs_label:
                raise ValueError(
                    f"{group}.{name} reads the label of every input, but source.labels="
                    f"{source['labels']} leaves some without: leave one of them out"
                )


def pair_up(
    config: Mapping[str, Any],
    data: Dataset,
    edges: Mapping[str, Edge],
    objective: Objective,
    parts: Mapping[str, Teacher],
    views: Mapping[str, View],
) -> dict[str, Edge]:
    """The edges of losses, those across modalities on the pairs that the run is to use.

    As a rule both ends see one and the same input, each through its transform. Where a pair shares
    its class alone (``data.class_only``), the teacher sees another pair of the class, drawn anew in
    every step, so that nothing is learned from which two stand side by side. With
    ``shuffled_pairs`` it sees a fixed, random other pair. Losses within a modality stay as they
    are, and labels go with what the student sees.

    Args:
        config: plain settings.
        data: says what a pair shares.
        edges: of all losses.
        objective: with these losses.
        parts: the teachers that are no networks, by name.
        views: by name.

    Raises:
        ValueError: see :func:`check_labels`; for pairs to be shuffled where there are none, and for
            a loss that compares two views of one thing where they are views of two.
    """
    check_labels(config["source"], parts, views)
    sights = Sights(config, parts)
    losses = transfer_losses(objective)
    across = [n for n, edge in edges.items() if losses[n].needs_teacher and sights.differ(edge)]
    if data.class_only:
        for name in across:
            _check_instance(name, losses[name], sights.within(edges[name].teacher.name), data)
    if config["shuffled_pairs"]:
        _check_shuffled(config, bool(across))
        _check_views(config, views, sights)
        for name in across:
            _check_apart(name, edges[name], losses[name], sights)
    if not (data.class_only or config["shuffled_pairs"]):
        return dict(edges)
    return {name: _apart(edge) if name in across else edge for name, edge in edges.items()}


def pairs_of(
    config: Mapping[str, Any], data: Dataset, edges: Mapping[str, Edge]
) -> dict[str, Pair]:
    """The views that a source of real data makes of its rows, by name and kind."""
    pairs = dict(config["source"].get("pairs") or {})
    if any(edge.teacher.view == PAIRED for edge in edges.values()):
        pairs[PAIRED] = "shuffled" if config["shuffled_pairs"] else "same_class"
    return pairs


class Sights:
    """What each network is shown.

    Args:
        config: plain settings.
        parts: the teachers that are no networks, by name.
    """

    def __init__(self, config: Mapping[str, Any], parts: Mapping[str, Teacher]) -> None:
        self.parts = parts
        self.nodes = {"student": config["student"], "teacher": config["teacher"]}
        self.nodes |= {**config["students"], **config["teachers"]}

    def of(self, name: str) -> frozenset[str]:
        """The transforms of a network, or of all that a teacher asks."""
        if name in self.parts:
            asked = (Ref.parse(other).name for other in self.parts[name].of)
            return frozenset().union(*(self.of(other) for other in asked))
        node = self.nodes[name]
        if node.get("of"):  # a branch sees what its trunk sees
            return self.of(node["of"])
        return frozenset({json.dumps(node.get("transform"), sort_keys=True)})

    def within(self, name: str) -> list[Teacher]:
        """A teacher and those that it asks in turn, as far as they are no networks."""
        if name not in self.parts:
            return []
        part = self.parts[name]
        return [part, *(p for other in part.of for p in self.within(Ref.parse(other).name))]

    def differ(self, edge: Edge) -> bool:
        """Whether the teacher's end of a loss is shown anything that the student's is not."""
        return bool(self.of(edge.teacher.name) - self.of(edge.student.name))


def _apart(edge: Edge) -> Edge:
    view = edge.teacher.view
    return replace(edge, teacher=Ref(edge.teacher.name, PAIRED if view == INPUT else view))


def _check_instance(name: str, loss: Any, asked: list[Teacher], data: Dataset) -> None:
    if loss.needs_instance or any(part.needs_instance for part in asked):
        raise ValueError(
            f"the loss {name} compares two networks on one and the same thing, but the two inputs "
            f"of a pair of data {data.name} share their class only: choose a loss on predictions, "
            f"such as {ALONE}"
        )


def _check_apart(name: str, edge: Edge, loss: Any, sights: Sights) -> None:
    """Raise a ValueError where a teacher would be shown true pairs after all."""
    reads = [ref for ref in edge.reads.values() if sights.differ(replace(edge, teacher=ref))]
    asked = sights.within(edge.teacher.name)  # a memory finds a row by its index, at any view
    own = [p for p in asked if p.needs_index or any(Ref.parse(n).view != INPUT for n in p.of)]
    if loss.asks_networks or reads or own or edge.teacher.view != INPUT:
        raise ValueError(
            f"shuffled_pairs=true would leave the loss {name} some true pairs, since it asks a "
            "teacher in ways of its own: leave out the loss, or the shuffling"
        )


def _check_views(config: Mapping[str, Any], views: Mapping[str, View], sights: Sights) -> None:
    """Raise a ValueError where labels or views would tell of true pairs."""
    if config["distiller"]["labels"] == "teacher" and sights.differ(Edge()):
        raise ValueError(
            "shuffled_pairs=true and distiller.labels=teacher: the labels would be those of true "
            "pairs; leave one of them out"
        )
    for name, view in views.items():
        if any(sights.differ(Edge(teacher=Ref(asked))) for asked in view.of):
            raise ValueError(
                f"shuffled_pairs=true would leave views.{name} true pairs, since it asks "
                f"{' and '.join(view.of)} about one input: leave out the view, or the shuffling"
            )


def _check_shuffled(config: Mapping[str, Any], across: bool) -> None:
    if config["data_free"]:
        raise ValueError("shuffled_pairs=true needs real data: leave it out, or choose method=kd")
    if not across:
        raise ValueError(
            "shuffled_pairs=true has nothing to shuffle: no loss joins two networks that are shown "
            "different things; leave it out, or give one a transform, such as "
            "student.transform=edges"
        )
