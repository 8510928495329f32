"""Methods with attacks, pools, averages and peers: who learns from whom, and one step of each."""

from typing import Any

import pytest
import torch

from core.runtime import Runtime
from distillers.step import Edge, Ref
from engine.config import compose, plain
from engine.parts import Parts, build_dataset, build_parts
from engine.roles import expand
from engine.teacher_file import blank_teacher
from models.pretrained import freeze

STUDENT, TEACHER, PEER = Ref("student"), Ref("teacher"), Ref("peer")
ATTACKED = Ref("student", "attacked")
CLEAN = {"clean": STUDENT}
# The losses with a weight, whose edge is the last word of each paper's formula.
EDGES: dict[str, dict[str, tuple[float, Edge]]] = {
    "pgd_at": {"cross_entropy": (1.0, Edge(ATTACKED))},
    "trades": {"cross_entropy": (1.0, Edge()), "trades": (6.0, Edge(ATTACKED, TEACHER, CLEAN))},
    "ard": {"kd": (1.0, Edge(ATTACKED))},
    "rslad": {"kd": (1 / 6, Edge()), "robust": (5 / 6, Edge(ATTACKED))},
    "iad": {
        "kd": (1.0, Edge(ATTACKED)),
        "iad": (1.0, Edge(ATTACKED, Ref("teacher", "attacked"), CLEAN)),
    },
    "meal": {
        "kd": (1.0, Edge(teacher=Ref("pool"))),
        "discriminator": (1.0, Edge(teacher=Ref("pool"))),
    },
    "mean_teacher": {
        "cross_entropy": (1.0, Edge()),
        "consistency": (1.0, Edge(teacher=Ref("average", "again"))),
    },
    "cskd": {
        "cross_entropy": (1.0, Edge()),
        "cskd": (1.0, Edge(teacher=Ref("student", "partner"))),
    },
    "dml": {
        "cross_entropy_student": (1.0, Edge()),
        "cross_entropy_peer": (1.0, Edge(PEER)),
        "mutual_student": (1.0, Edge(STUDENT, PEER)),
        "mutual_peer": (1.0, Edge(PEER, STUDENT)),
    },
}
BUILT = sorted({*EDGES} - {"cskd", "mean_teacher"})  # whose pairs are the source's business
ATTACKS = {"pgd_at": "ce", "trades": "kl", "ard": "ce", "rslad": "kl", "iad": "ce"}


def settings(method: str) -> dict[str, Any]:
    widths = ["teacher.model.width=4", "student.model.width=4"]
    return plain(
        compose([f"method={method}", "batch_size=8", "device=cpu", *widths], complete=False)
    )


@pytest.mark.parametrize("method", sorted(EDGES))
def test_who_learns_from_whom(method: str) -> None:
    config = settings(method)
    entries, edges = expand(config["distiller"]["losses"], ["student", *config["students"]])
    found = {n: (entries[n]["weight"], edges[n]) for n in entries if entries[n]["weight"]}
    assert found.keys() == EDGES[method].keys()
    for name, (weight, edge) in found.items():
        assert weight == pytest.approx(EDGES[method][name][0], abs=1e-4)
        assert edge == EDGES[method][name][1]


def parts_of(method: str) -> Parts:
    config, runtime = settings(method), Runtime("cpu")
    dataset = build_dataset(config, runtime)
    teachers = [freeze(blank_teacher(config, dataset)) for _ in range(3)]
    networks = [name for name, node in config["teachers"].items() if "_target_" not in node]
    others = dict(zip(networks, teachers[1:], strict=False))
    return build_parts(
        config, dataset, teachers[0] if config["needs_teacher"] else None, runtime, others
    )


@pytest.mark.parametrize("method", BUILT)
def test_every_network_learns_from_every_loss(method: str) -> None:
    parts = parts_of(method)
    parts.distiller.at(1.0)  # all schedules have begun
    for _ in range(2):  # an average is the student itself at first
        losses = parts.distiller(parts.source.next())
        parts.optimizer.zero_grad()
        losses.total.backward()
        parts.optimizer.step()
        parts.distiller.updated()
    assert losses.total.isfinite()
    learns = [n for n, w in parts.distiller.objective.losses.items() if w.weight]
    assert all(losses.values[name] > 0 for name in learns)
    gradients = [p.grad for p in parts.distiller.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    for student in parts.distiller.roles.students.values():
        assert any(p.grad.abs().sum() > 0 for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize(("method", "maximise"), [*ATTACKS.items()])
def test_each_attack_is_that_of_its_paper(method: str, maximise: str) -> None:
    view = parts_of(method).distiller.roles.views["attacked"]
    assert view.maximise == maximise
    assert view.mode == ("eval" if maximise == "kl" else "train")
    assert view.start == ("normal" if maximise == "kl" else "uniform")
    assert (view.epsilon, view.iterations, view.step_size) == (0.15, 10, pytest.approx(0.0375))
    assert view.of == (("student", "teacher") if method == "rslad" else ("student",))


def test_the_second_part_of_iad_waits() -> None:
    parts = parts_of("iad")
    for progress, counts in ((0.0, False), (0.29, False), (0.3, True)):
        parts.distiller.at(progress)
        value = parts.distiller(parts.source.next()).values["iad"]
        assert bool(value) == counts


def test_a_resumed_attack_is_the_same() -> None:
    first, second = parts_of("rslad"), parts_of("rslad")
    batches = [first.source.next() for _ in range(2)]
    for batch in batches:
        value = first.distiller(batch).total
    second.distiller.load_state_dict(first.distiller.state_dict())
    second.distiller.steps = 0
    second.student.load_state_dict(parts_of("rslad").student.state_dict())
    for batch in batches:
        again = second.distiller(batch).total
    assert torch.equal(value, again)
