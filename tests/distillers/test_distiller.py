"""The distiller trains the student and the losses, and touches nothing else."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import Batch
from distillers.attention import AttentionTransfer
from distillers.edges import student_taps, teacher_taps
from distillers.response import DIST, DKD, KD, CrossEntropy, LogitL1, StandardizedKD
from distillers.step import Edge, Ref, Step, View
from models.classifier import Outputs
from models.meter import Meter
from models.recording import Moments
from tests.distillers.small import Hint, make, make_batch, make_teacher, objective_of, train


def test_taps_are_the_union() -> None:
    objective = objective_of(
        kd=KD(), at=AttentionTransfer([{"student": "stage1", "teacher": "x"}]), hint=Hint()
    )
    assert student_taps(objective) == ("stage1", "stage2")
    assert teacher_taps(objective) == ("x", "stage2")


def test_losses_are_the_weighted_losses() -> None:
    teacher = make_teacher().eval()
    objective = Objective({"kd": Weighted(KD(), 0.9), "l1": Weighted(LogitL1(), 3.0)})
    distiller = make(objective, teacher)
    batch = make_batch()
    losses = distiller(batch)
    s, t = distiller.student(batch.input), teacher(batch.input)
    torch.testing.assert_close(losses.values["kd"], (0.9 * KD()(s, t, batch)).detach())
    torch.testing.assert_close(losses.values["l1"], (3.0 * LogitL1()(s, t, batch)).detach())
    torch.testing.assert_close(losses.total.detach(), sum(losses.values.values()))
    assert not any(value.requires_grad for value in losses.values.values())


class Negative(View):
    def forward(self, step: Step) -> Tensor:
        return 1 - step.view("input")


@pytest.mark.parametrize(("student", "teacher"), [("input", "dark"), ("dark", "input")])
def test_each_network_gets_the_view_that_its_edge_names(student: str, teacher: str) -> None:
    edges = {"l1": Edge(Ref("student", student), Ref("teacher", teacher))}
    distiller = make(objective_of(l1=LogitL1()), make_teacher(), edges=edges, dark=Negative())
    batch = make_batch()
    shown = {"input": batch.input, "dark": 1 - batch.input}
    found = distiller(batch).total
    answers = distiller.student(shown[student]), make_teacher().eval()(shown[teacher])
    torch.testing.assert_close(found, LogitL1()(*answers, batch))


def test_the_teacher_is_outside_the_module_tree() -> None:
    teacher = make_teacher()
    distiller = make(objective_of(kd=KD()), teacher)
    assert distiller.teacher is not None
    ours = {id(p) for p in distiller.parameters()} | {id(m) for m in distiller.modules()}
    theirs = [*distiller.teacher.modules(), *distiller.teacher.parameters()]
    assert not any(id(x) in ours for x in (*theirs, *teacher.parameters()))
    assert all(key.startswith(("student.", "_extra_state")) for key in distiller.state_dict())
    distiller.train()
    assert not any(m.training for m in distiller.teacher.modules())


def test_the_teacher_is_frozen() -> None:
    teacher = make_teacher().train()  # as a careless caller leaves it
    before = copy.deepcopy(teacher.state_dict())
    distiller = make(objective_of(kd=KD(), at=AttentionTransfer(["stage1", "stage2"])), teacher)
    train(distiller, 3)
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert distiller.teacher is not None
    assert all(p.grad is None for p in (*teacher.parameters(), *distiller.teacher.parameters()))
    assert not any(p.requires_grad for p in distiller.teacher.parameters())
    assert teacher.training


def test_no_gradient_passes_through_the_teacher() -> None:
    x = make_batch().input
    batch = Batch(x, x.clone().requires_grad_())  # as a generator's images that were not detached
    make(objective_of(l1=LogitL1()), make_teacher())(batch).total.backward()
    assert batch.input.grad is None


def test_the_teacher_is_seen_as_it_is_loaded_later() -> None:
    teacher = make_teacher()
    distiller = make(objective_of(l1=LogitL1()), teacher)
    before = distiller(make_batch()).total
    teacher.load_state_dict({k: v + 1 for k, v in teacher.state_dict().items()})
    assert not torch.equal(distiller(make_batch()).total, before)


def test_batchnorm_hooks_do_not_fire(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    note = Moments.__call__

    def counting(self: Moments, layer: Any, args: tuple[Tensor]) -> None:
        calls.append(1)
        note(self, layer, args)

    monkeypatch.setattr(Moments, "__call__", counting)
    teacher = make_teacher(statistics=True)
    teacher(make_batch().input)
    assert len(calls) == 1  # the hook is there, and counted
    train(make(objective_of(kd=KD()), teacher), 3)
    assert len(calls) == 1


def test_the_student_stays_in_train_mode() -> None:
    distiller = make(objective_of(kd=KD()), make_teacher())
    norm = distiller.student.batchnorms()[0]
    for step in range(1, 13):
        train(distiller, 1)
        assert all(m.training for m in distiller.modules())
        assert norm.num_batches_tracked == step
        if step % 3 == 0:  # an evaluation that does not restore the mode
            distiller.student.eval()
            distiller.student(make_batch().input)


def test_the_student_learns() -> None:
    values = train(make(objective_of(kd=KD()), make_teacher()), 25)
    assert values[-1] < 0.3 * values[0]


def test_the_teacher_is_run_only_where_it_is_needed() -> None:
    distiller = make(objective_of(ce=CrossEntropy()), make_teacher())
    train(distiller, 2, make_batch(torch.arange(6) % 4))
    assert distiller.teacher is None


def test_an_input_is_a_query_however_many_losses_read_it(tmp_path: Path) -> None:
    meter = Meter()
    losses = {"kd": KD(), "l1": LogitL1(), "hint": Hint()}  # the hint's dry pass is none
    distiller = make(objective_of(**losses), make_teacher().metered(meter))
    assert meter.queries == 0
    train(distiller, 3)
    assert meter.queries == 18
    torch.save(distiller.state_dict(), tmp_path / "state.pt")
    other = make(objective_of(**losses), make_teacher())
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(make_batch()).total, distiller(make_batch()).total)


def test_a_loss_that_needs_a_teacher_needs_one() -> None:
    with pytest.raises(ValueError, match="need a teacher"):
        make(objective_of(kd=KD()), None)


def test_labels_come_from_the_batch_then_from_the_teacher() -> None:
    teacher = make_teacher().eval()
    distiller = make(objective_of(ce=CrossEntropy(), kd=KD()), teacher)
    batch = make_batch()
    predicted = teacher(batch.input).logits.argmax(1)
    unlabelled = distiller(batch).values["ce"]
    assert batch.label is None  # the caller's batch is not written to
    assert torch.equal(unlabelled, distiller(make_batch(predicted)).values["ce"])
    assert not torch.equal(unlabelled, distiller(make_batch((predicted + 1) % 4)).values["ce"])


def test_labels_that_nobody_knows_are_an_error() -> None:
    with pytest.raises(ValueError, match="needs labels"):
        make(objective_of(ce=CrossEntropy()), make_teacher())(make_batch())


def test_a_losses_parameters_are_trained_and_kept_but_not_the_students() -> None:
    distiller = make(objective_of(kd=KD(), hint=Hint()), make_teacher())
    own = {key for key in distiller.state_dict() if "projection" in key}
    assert len(own) == 2
    assert {name for name, _ in distiller.named_parameters() if "projection" in name} == own
    assert not any("projection" in key for key in distiller.student.state_dict())
    before = {key: distiller.state_dict()[key].clone() for key in own}
    train(distiller, 1)
    assert not any(torch.equal(before[key], distiller.state_dict()[key]) for key in own)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_loss_is_finite_in_float32(precision: str) -> None:
    objective = objective_of(
        ce=CrossEntropy(),
        kd=KD(),
        standardized=StandardizedKD(),
        l1=LogitL1(),
        dkd=DKD(),
        dist=DIST(),
        at=AttentionTransfer(["stage1", "stage2"]),
        hint=Hint(),
    )
    teacher = make_teacher()
    distiller = make(objective, teacher, Runtime(device="cpu", precision=precision))
    seen: list[torch.dtype] = []
    for network in (distiller.student, distiller.teacher):
        assert network is not None
        head = network.module.head
        head.register_forward_hook(lambda m, args, output: seen.append(output.dtype))
    losses = distiller(make_batch())
    losses.total.backward()
    assert seen == 2 * [torch.bfloat16 if precision == "bf16" else torch.float32]
    for name, value in {**losses.values, "total": losses.total}.items():
        assert value.dtype == torch.float32, name
        assert value.isfinite(), name
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_known_answers_are_not_asked_for_again() -> None:
    teacher = make_teacher().metered(meter := Meter())
    distiller = make(objective_of(kd=KD(), ce=CrossEntropy()), teacher)
    asked = distiller(make_batch())
    assert meter.queries == 6
    with torch.no_grad(), teacher.uncounted():
        expected = distiller.teacher(make_batch().input).logits
    assert torch.equal(asked.teacher_logits, expected)
    other = 2 * expected.flip(0)
    batch = make_batch()
    batch.teacher_logits = other
    known = distiller(batch)
    assert meter.queries == 6
    logits = distiller.student(batch.input).logits
    kd = KD()(Outputs(logits), Outputs(other), batch)
    torch.testing.assert_close(known.values["kd"], kd.detach())
    ce = torch.nn.functional.cross_entropy(logits, other.argmax(1))
    torch.testing.assert_close(known.values["ce"], ce.detach())


def test_answers_do_not_suffice_where_features_are_read() -> None:
    teacher = make_teacher().metered(meter := Meter())
    distiller = make(objective_of(kd=KD(), hint=Hint()), teacher)
    batch = make_batch()
    batch.teacher_logits = torch.zeros(6, 4)
    losses = distiller(batch)
    assert meter.queries == 6
    assert not torch.equal(losses.teacher_logits, batch.teacher_logits)
