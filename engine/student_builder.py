"""The students of a run, from their nodes: networks and branches, and what they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from core.build import build
from data.spec import InputSpec
from data.transforms import Transform
from distillers.base import stage_tap
from engine.networks import build_network
from engine.warm_start import check_start, first_moments, warm_start
from models.branch import Branch, feature_shape
from models.check import check_network
from models.classifier import Classifier
from models.taps import named_taps


class StudentBuilder:
    """Builds the networks first, whose taps the losses decide, and then the students around them.

    Args:
        config: plain settings.
        available: what parts may name as arguments.

    Attributes:
        nodes: the students' nodes, by name.
    """

    def __init__(self, config: Mapping[str, Any], available: Mapping[str, Any]) -> None:
        self.nodes = {"student": config["student"], **config["students"]}
        self.teacher, self.available = config["teacher"], available

    def modules(self) -> tuple[dict[str, nn.Module], list[str]]:
        """The networks, in the order of the configuration: a branch follows its trunk.

        Returns:
            The networks, and a line on each that does not begin with random weights.

        Raises:
            ValueError: for branches of nothing, and see :meth:`spec`.
        """
        modules: dict[str, nn.Module] = {}
        lines = []
        for name, node in self.nodes.items():
            modules[name] = self._module(name, modules)
            if node.get("checkpoint"):
                where, spec = place(name), self.spec(name)[0]
                lines.append(warm_start(modules[name], node, where, spec, self.available))
        return modules, lines

    def branches(self, modules: Mapping[str, nn.Module]) -> dict[str, tuple[str, str]]:
        """The trunk of each branch among the networks, and the tap that it starts from."""
        found = {name: m for name, m in modules.items() if isinstance(m, Branch)}
        return {name: (self.nodes[name]["of"], m.tap) for name, m in found.items()}

    def students(
        self, modules: Mapping[str, nn.Module], taps: Mapping[str, tuple[str, ...]]
    ) -> tuple[dict[str, Classifier], list[str]]:
        """The students on the device, and lines on what their networks return in training."""
        classes, takes = self.available["classes"], self.available["spec"]
        students, lines = {}, []
        for name, module in modules.items():
            spec, transform = self.spec(name)
            wanted = taps.get(name, ())
            student = Classifier(module, spec, classes, wanted, transform=transform, takes=takes)
            if line := check_network(student, len(classes), training=True):
                lines.append(f"{name}: {line}")
            students[name] = student
        for student in students.values():  # a branch that is checked shares its trunk's device
            self.available["runtime"].prepare(student)
        return students, lines

    def spec(self, name: str) -> tuple[InputSpec, Transform | None]:
        """What a student's module expects, and the transform that shows it the data's inputs.

        A branch sees what its trunk sees.

        Raises:
            ValueError: for a transform without mean and std, those that do not fit, and first
                weights of a network that was shown something else.
        """
        while self.nodes[name].get("of"):
            name = self.nodes[name]["of"]
        node, path, available = self.nodes[name], place(name), self.available
        seen, transform = available["spec"], None
        if node.get("transform") is not None:
            transform = build(node["transform"], Transform, f"{path}.transform", **available)
            # on the host, where the network still is that is checked with it
            seen = transform.measured(seen, seen.noise(64, torch.device("cpu")))
        check_start(node, path, seen, available)
        known = first_moments(node, available["teacher"], self.teacher, seen.shape[0])[0]
        moments: dict[str, Any] = dict(known)
        if transform is not None and len(moments) < 2:
            raise ValueError(f"{path}.transform needs {path}.mean and {path}.std")
        try:
            return replace(seen, **moments), transform
        except ValueError as error:
            raise ValueError(f"{path}.mean and {path}.std do not fit: {error}") from None

    def _module(self, name: str, modules: Mapping[str, nn.Module]) -> nn.Module:
        """A student's network; a branch together with the trunk that it shares."""
        node, path, classes = self.nodes[name], place(name), self.available["classes"]
        if node.get("of") is None:
            spec = self.spec(name)[0]
            return build_network(node["model"], spec.shape, classes, f"{path}.model", spec)
        if node.get("transform") is not None:
            raise ValueError(f"{path} is a branch, which sees what its trunk sees: no transform")
        if given := [
            k for k in ("checkpoint", "weights", "mean", "std") if node.get(k) is not None
        ]:
            raise ValueError(
                f"{path} is a branch, which sees what its trunk sees and begins with random "
                f"weights: no {', '.join(given)}"
            )
        if (trunk := modules.get(node["of"])) is None:
            raise ValueError(f"{path}.of={node['of']} is no student that comes before it")
        spec = self.spec(name)[0]
        x = spec.normalize(spec.noise(2, torch.device("cpu")))
        tap = stage_tap(node["tap"], named_taps(trunk), node["of"])
        shape = feature_shape(trunk, tap, x)
        return Branch(trunk, tap, build_network(node["model"], shape, classes, f"{path}.model"))


def place(name: str) -> str:
    """Where a student stands in the configuration."""
    return name if name == "student" else f"students.{name}"
