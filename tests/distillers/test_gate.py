"""ONE's gate over branches."""

import copy

import pytest
import torch

from core.runtime import Runtime
from distillers.combinations import Gate
from distillers.distiller import Distiller
from distillers.response import KD, CrossEntropy
from distillers.step import Edge, Ref, Roles, Step
from models.classifier import Classifier
from models.meter import Meter
from tests.distillers.small import SPEC, Network, make_batch, objective_of

LABEL = torch.tensor([0, 3, 1, 1, 2, 0])


def gated(
    network: str = "student", edges: dict[str, Edge] | None = None, **others: Classifier
) -> Distiller:
    """A student and a peer behind a gate, which learns from labels and teaches the student."""
    torch.manual_seed(0)
    student = Classifier(Network(4), SPEC, taps=("stage2",))
    peer = Classifier(Network(6), SPEC)
    gate = Gate(["student", "peer"], network, "stage2")
    edges = edges or {"ce": Edge(Ref("gate")), "kd": Edge(teacher=Ref("gate"))}
    objective = objective_of(**{"ce": CrossEntropy(), "kd": KD(3.0)})
    students = {"peer": peer, **others}
    runtime = Runtime("cpu")
    return Distiller(
        student, objective, None, runtime, edges=edges, students=students, teachers={"gate": gate}
    )


def gate_of(distiller: Distiller) -> Gate:
    gate = distiller.roles.teachers["gate"]
    assert isinstance(gate, Gate)
    return gate


def test_the_gate_is_one_s_formula() -> None:
    distiller, batch = gated(), make_batch(LABEL)
    part, student, peer = gate_of(distiller), distiller.student, distiller.students["peer"]
    distiller.train()
    s, p = student(batch.input), peer(batch.input)
    linear, norm = part.gate[0], part.gate[1]
    x = s.features["stage2"].mean(dim=(2, 3)) @ linear.weight.T + linear.bias
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt()
    g = x.clamp_min(0).exp()
    g = g / g.sum(1, keepdim=True)
    expected = g[:, :1] * s.logits + g[:, 1:] * p.logits
    found = part(Step(distiller.roles, batch), "input").logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(g, torch.full_like(g, 0.5))


def test_a_gate_learns_as_a_student_and_is_detached_as_a_teacher() -> None:
    distiller, batch = gated(), make_batch(LABEL)
    peer, part = distiller.students["peer"], gate_of(distiller)
    both = [*peer.parameters(), *part.parameters()]
    step = Step(distiller.roles, batch)
    kd = KD(3.0)(step.answer("student"), step.target(Ref("gate")), batch)
    assert all(g is None for g in torch.autograd.grad(kd, both, allow_unused=True))
    distiller(batch).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in part.gate[0].parameters())
    assert any(p.grad is not None and p.grad.any() for p in peer.parameters())
    assert {id(p) for p in part.parameters()} <= {id(p) for p in distiller.parameters()}
    assert any(key.startswith("teachers.gate.gate.") for key in distiller.state_dict())


def test_making_a_gate_changes_and_counts_nothing() -> None:
    torch.manual_seed(0)
    student = Classifier(Network(4), SPEC, taps=("stage2",), meter=Meter()).train()
    before = copy.deepcopy(student.state_dict())
    gate = Gate(["student", "other"], "student", "stage2")
    gate.prepare(Roles({"student": student}, {}, {"gate": gate}, {}, Runtime("cpu")))
    assert student.training
    assert student.meter is not None
    assert student.meter.queries == 0
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert gate.gate[0].weight.shape == (2, 4)


def test_a_gate_reads_networks_only() -> None:
    with pytest.raises(ValueError, match="gives only logits"):
        gated(network="gate")
    gate = Gate(["student", "twig"], "twig", "x")
    roles = Roles({}, {}, {}, {}, Runtime("cpu"), branches={"twig": ("student", "stage1")})
    with pytest.raises(ValueError, match="its trunk"):
        gate.prepare(roles)


def test_a_gate_may_read_a_network_that_it_does_not_combine() -> None:
    """Whose features then have a graph too, so that the gate teaches its trunk."""
    torch.manual_seed(0)
    trunk = Classifier(Network(4), SPEC, taps=("stage2",))
    others = {"a": Classifier(Network(4), SPEC), "b": Classifier(Network(4), SPEC)}
    gate = Gate(["a", "b"], "student", "stage2")
    edges = {"ce": Edge(Ref("gate"))}
    distiller = Distiller(
        trunk,
        objective_of(ce=CrossEntropy()),
        None,
        Runtime("cpu"),
        edges=edges,
        students=others,
        teachers={"gate": gate},
    )
    distiller(make_batch(LABEL)).total.backward()
    assert trunk.module.stage1[0].weight.grad.any()  # type: ignore[union-attr, index]
    assert not trunk.module.head[1].weight.grad.any()  # type: ignore[union-attr, index]
