"""From a configuration to the parts of one run."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from core.build import build
from core.memory import check_memory
from core.runtime import Runtime
from core.schedules import Factor, Schedule
from data.dataset import Dataset
from data.spec import InputSpec
from distillers.distiller import Distiller
from engine.expected import expected_of_data
from engine.names import averaged
from engine.networks import build_objective, build_observer
from engine.pairing import pairs_of
from engine.queries import check_budget
from engine.roles import build_distiller
from engine.turns import Turns, build_optimizer
from generators.base import Source, Synthesizer
from generators.observer import unread_statistics
from models.black_box import BlackBox
from models.classifier import Classifier
from models.meter import Meter, queries


@dataclass
class Parts:
    """What one run is made of.

    Args:
        teacher: what source and distiller see of it.
        notes: lines on networks and losses that the user should see.
        deploy: the name of the network that the run is for.
        spare: whether a step may leave a parameter of the distiller without gradient.
    """

    dataset: Dataset
    teacher: Classifier | None
    student: Classifier
    source: Source
    distiller: Distiller
    optimizer: torch.optim.Optimizer | Turns
    schedule: Schedule
    notes: list[str]
    deploy: str = "student"
    spare: bool = False

    def __post_init__(self) -> None:
        if self.deploy not in self.networks:
            known = ", ".join(self.networks)
            raise ValueError(f"deploy={self.deploy} is no network that learns; there is: {known}")

    @property
    def networks(self) -> dict[str, Classifier]:
        """All that learn, students and averages of them, by name."""
        students = {"student": self.student, **self.distiller.students}
        averages = {n: t.network() for n, t in self.distiller.roles.teachers.items()}
        return students | {n: a for n, a in averages.items() if a is not None}  # type: ignore[return-value]

    @property
    def result(self) -> Classifier:
        """The network that is evaluated and saved first: a student, or an average of one."""
        return self.networks[self.deploy]

    @property
    def beside(self) -> dict[str, Classifier]:
        """Those that are evaluated and saved as well; an average stands for its student."""
        teacher = self.distiller.roles.teachers.get(self.deploy)
        hidden = {self.deploy, *(teacher.of if teacher else ())}
        return {name: n for name, n in self.networks.items() if name not in hidden}

    def learner(self, name: str) -> str:
        """The student that a network is: itself, or the one of which it is an average."""
        teacher = self.distiller.roles.teachers.get(name)
        return teacher.of[0] if teacher else name

    def compile(self, runtime: Runtime) -> None:
        """Compile the students in place, if the run asks for it."""
        for student in self.distiller.roles.students.values():
            runtime.compile(student.module)

    def counts(self) -> dict[str, int]:
        """What the run took so far, on this rank: :meth:`Source.counts`, and what meters say."""
        counts = self.source.counts()
        first = {"images_synthesized": counts.pop("images_synthesized")}
        return first | {"teacher_queries": queries(self.distiller)} | counts


def build_dataset(config: dict[str, Any], runtime: Runtime) -> Dataset:
    """The data set; a data-free run cannot open its training split."""
    known = functools.partial(expected_of_data, config["teacher"])
    dataset: Dataset = build(
        config["data"]["dataset"], Dataset, "data.dataset", runtime=runtime, expected=known
    )
    if config["data_free"]:
        dataset.close_training()
    return dataset


def offered(
    config: dict[str, Any], dataset: Dataset, teacher: Classifier | None, runtime: Runtime
) -> dict[str, Any]:
    """What any part may take as an argument, before there is a student."""
    spec = teacher.takes if teacher else dataset.spec
    return {
        "spec": spec,
        "num_classes": len(dataset.classes),
        "classes": dataset.classes,
        "in_channels": spec.shape[0],
        "input_size": spec.shape[1:],
        "data": dataset,
        "teacher": teacher,
        "runtime": runtime,
        "steps": config["steps"],
        "batch_size": config["batch_size"],
    }


def build_parts(
    config: dict[str, Any],
    dataset: Dataset,
    teacher: Classifier | None,
    runtime: Runtime,
    others: Mapping[str, Classifier] | None = None,
) -> Parts:
    """Everything of a run but its teacher, in the order in which the parts need each other.

    Source and distiller get a teacher with a meter. Evaluation sees the teacher itself, so that it
    counts as no query and costs nothing of a black box's budget.

    Args:
        others: teachers besides ``teacher`` that are networks, by name.
    """
    config = averaged(config)
    torch.manual_seed(runtime.seed)  # a teacher trained just now, or earlier, changes no draw
    everyone = _metered({"teacher": teacher, **(others or {})}, config, runtime)
    teacher = everyone.get("teacher")
    available = offered(config, dataset, teacher, runtime)
    _check_batch(config, available["spec"])
    distiller, notes = build_distiller(config, available, everyone)
    available |= {"student": distiller.student, "ask_teacher": distiller.ask_teacher}
    if pairs := pairs_of(config, dataset, distiller.edges):
        config = {**config, "source": {**config["source"], "pairs": pairs}}
    source = _build_source(config, available, notes)
    meters = {name: network.meter for name, network in everyone.items() if network.meter}
    distiller.add_module("meters", torch.nn.ModuleDict(meters))  # so a checkpoint holds the counts
    if isinstance(teacher, BlackBox):
        check_budget(teacher, source, distiller, config["batch_size"], config["steps"])
    if not any(p.requires_grad for p in distiller.student.parameters()):
        raise ValueError(f"the student {distiller.student.name} has no trainable parameters")
    optimizer = build_optimizer(config, distiller, available)
    schedule = build(config["schedule"], Factor, "schedule", **available)
    return Parts(
        dataset=dataset,
        teacher=teacher,
        student=distiller.student,
        source=source,
        distiller=distiller,
        optimizer=optimizer,
        schedule=Schedule(optimizer, schedule),
        notes=notes,
        deploy=config["deploy"],
    )


def _build_source(config: dict[str, Any], available: Mapping[str, Any], notes: list[str]) -> Source:
    """The source, after the synthesizer that it may mix and what judges that one's inputs.

    Args:
        notes: gains lines on what the objective cannot read.
    """
    available, teacher = dict(available), available["teacher"]
    if node := config["synthesis"]:
        objective = build_objective(node, "synthesis", **available)
        notes += unread_statistics(teacher, objective) if teacher else []
        notes += [f"synthesis: {note}" for note in objective.ask("note") if note]
        available["observer"] = build_observer(node, objective, **available)
    if node := config["synthesizer"]:
        available["synthesizer"] = build(node, Synthesizer, "synthesizer", **available)
    source: Source = build(config["source"], Source, "source", **available)
    return source


def _check_batch(config: dict[str, Any], spec: InputSpec) -> None:
    inputs = 4 * config["batch_size"] * math.prod(spec.shape)
    what = f"one batch of batch_size={config['batch_size']} inputs"
    check_memory(inputs, what, "set a smaller batch_size")


def _metered(
    networks: Mapping[str, Classifier | None], config: dict[str, Any], runtime: Runtime
) -> dict[str, Classifier]:
    """The teachers that there are with a meter each, in a black box where a node says so."""
    nodes, found = {"teacher": config["teacher"], **config["teachers"]}, {}
    for name, network in networks.items():
        if network is None:
            continue
        if (node := nodes[name].get("black_box")) is None:
            found[name] = network.metered(Meter())
        else:
            path = f"{name if name == 'teacher' else f'teachers.{name}'}.black_box"
            given = {"teacher": network, "runtime": runtime}
            found[name] = build(node, Classifier, path, **given)
    return found
