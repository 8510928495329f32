"""Who learns from whom: names, lists, branches, averages, turns."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.runtime import Runtime
from data.spec import InputSpec
from distillers.response import KD
from distillers.step import Edge, Ref
from engine import student_builder
from engine.choices import written
from engine.config import compose, plain
from engine.names import expand
from engine.parts import Parts, build_dataset, build_parts
from engine.student_builder import StudentBuilder
from engine.teacher import as_teacher, networks_of
from engine.turns import _owner
from models.branch import Branch
from models.classifier import Classifier
from tests.test_contracts import small, teacher_for

MUTUAL = "{student: [student, peer], teacher: others, loss: {_target_: distillers.response.KD}}"
PEER = [
    "students={peer: {model: digits_cnn_small}}",
    "distiller.losses.cross_entropy.student=[student,peer]",
    f"+distiller.losses.mutual={MUTUAL}",
]
MODEL = "{_target_: models.branch.ConvBranch, widths: [6]}"
BRANCH = f"students={{side: {{of: student, tap: stage1, model: {MODEL}}}}}"
SMALL = "{model: digits_cnn_small}"
BRANCHES = ("students.second.model.widths=[6]", "students.third.model.widths=[6]")
MIXED = "{_target_: distillers.combinations.Mean, of: [student], temperature: 1.0}"
AVERAGE = "distillers.teachers.Average"
ALONG = "distiller.losses.cross_entropy.student=[student,side]"


def make(method: str, *overrides: str) -> Parts:
    settings = plain(small(method, *overrides))
    runtime = Runtime("cpu", seed=settings["seed"])
    dataset = build_dataset(settings, runtime)
    teacher = teacher_for(settings, dataset) if settings["needs_teacher"] else None
    return build_parts(settings, dataset, teacher, runtime)


def mutual(*overrides: str) -> Parts:
    return make("scratch", *PEER, *overrides)


def test_lists_are_one_loss_each_and_several_teachers_their_mean() -> None:
    losses = {
        "kd": {"weight": 3.0, "student": ["a", "b@dark"], "teacher": ["t", "u", "v"], "loss": {}},
        "ce": {"student": "b", "teacher": "others", "loss": {}},
        "plain": {"loss": {}, "reads": {"clean": "a@dark"}},
    }
    entries, edges = expand(losses, ["student", "a", "b"])
    assert len(entries) == 6 + 2 + 1
    assert edges["kd_b@dark_u"] == Edge(Ref("b", "dark"), Ref("u"))
    assert entries["kd_b@dark_u"] == {"weight": 1.0, "loss": {}}
    assert [str(edges[f"ce_{name}"].teacher) for name in ("student", "a")] == ["student", "a"]
    assert edges["plain"] == Edge(reads={"clean": Ref("a", "dark")})
    with pytest.raises(ValueError, match="no other student"):
        expand({"kd": {"teacher": "others"}}, ["student"])
    with pytest.raises(ValueError, match="there are two losses kd_a: call one of them otherwise"):
        expand({"kd": {"teacher": ["a", "b"]}, "kd_a": {}}, ["student"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distiller.losses.cross_entropy.student=studnt"], "did you mean student"),
        (["distiller.losses.cross_entropy.student=student@dark"], "the view 'dark'"),
        (["students={others: {model: digits_cnn}}"], "'others' has a meaning of its own"),
        ([f"students={{dark: {SMALL}}}", f"teachers={{dark: {MIXED}}}"], "'dark' is taken"),
        (["students={a-b: {model: digits_cnn}}"], "is no word"),
        (["ema=0.9", f"teachers={{average: {MIXED}}}"], "ema adds a teacher called average"),
        (["distiller.losses.cross_entropy.student=[]"], r"student \[\]: name at least one"),
        (["distiller.losses.cross_entropy.student=[student,student]"], "and each once"),
        (["distiller.losses.cross_entropy.teacher=teacher@typo"], "the view 'typo'"),
        ([f"students={{peer: {SMALL}}}"], "no loss trains peer: name it as the student of one"),
        (["deploy=per"], "deploy names the network 'per'"),
        (["deploy=mean", f"teachers={{mean: {MIXED}}}"], "deploy=mean is no network that learns"),
        (
            ["teachers={idle: {_target_: distillers.teachers.Average}}"],
            "nothing asks teachers.idle",
        ),
        (
            ["turns={a: {of: students.per}}"],
            r"turns.a.of=students.per does not exist; there is: st",
        ),
        (
            ["turns={a: {of: student, every: 2, first: 2}}"],
            "first=2 should lie from 0 to every-1=1",
        ),
        (
            ["students={side: {of: later, tap: stage1, model: digits_cnn}}", ALONG],
            "no student that",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("scratch", *overrides)


def test_all_losses_off_at_a_view_still_have_a_graph() -> None:
    off = "{_target_: core.schedules.constant, warmup: 0.5}"
    parts = make("pgd_at", f"distiller.losses.cross_entropy.schedule={off}")
    parts.distiller.at(0.0)
    losses = parts.distiller(parts.source.next())
    losses.total.backward()
    assert losses.total == 0
    assert all(p.grad is not None for p in parts.student.parameters())


def test_a_turn_of_a_branch_leaves_its_trunk() -> None:
    parts = make("one", *BRANCHES)
    owned = {id(p) for p in _owner(parts.distiller, "students.second", "turns.a").parameters()}
    assert owned
    assert not owned & {id(p) for p in parts.student.parameters()}


def test_a_network_may_be_named_and_a_wrong_name_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="did you mean 'digits_cnn'"):
        small("scratch", "students={peer: {model: digits_cn}}")


def test_a_further_teacher_has_another_seed_and_this_runs_own_split() -> None:
    config = compose(["experiment=wine_splits", "method=aver", "seed=3"])
    [other, *_] = [as_teacher(config, node) for node in networks_of(plain(config)).values()]
    assert other.seed == 103
    assert other.data.dataset.split == config.data.dataset.split == 3


def test_each_peer_learns_from_the_others_detached_answer() -> None:
    parts = mutual()
    parts.distiller.train()
    batch = parts.source.next()
    a, b = (copy.deepcopy(parts.networks[name]).train() for name in ("student", "peer"))
    parts.distiller(batch).total.backward()
    s, t = a(batch.input), b(batch.input)
    cross = torch.nn.functional.cross_entropy
    loss = cross(s.logits, batch.label) + cross(t.logits, batch.label)
    fixed = [type(o)(o.logits.detach()) for o in (s, t)]
    (loss + KD()(s, fixed[1], batch) + KD()(t, fixed[0], batch)).backward()
    for name, mine in (("student", a), ("peer", b)):
        for p, q in zip(parts.networks[name].parameters(), mine.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_every_network_runs_once_at_each_view() -> None:
    parts = mutual()
    runs: list[str] = []
    for name, network in parts.networks.items():
        network.register_forward_hook(lambda *_, name=name: runs.append(name))
    parts.distiller(parts.source.next())
    assert sorted(runs) == ["peer", "student"]


def test_a_peer_is_evaluated_and_deployed() -> None:
    parts = mutual("deploy=peer")
    assert parts.result is parts.networks["peer"]
    assert list(parts.beside) == ["student"]


def test_a_branch_shares_its_trunk() -> None:
    parts = make("scratch", BRANCH, ALONG)
    side = parts.networks["side"]
    assert isinstance(side.module, Branch)
    assert side.module.trunk is parts.student.module
    runs: list[int] = []
    parts.student.module.stage1.register_forward_hook(lambda *_: runs.append(1))
    batch = parts.source.next()
    parts.distiller(batch).total.backward()
    assert runs == [1]
    assert all(p.grad is not None for p in side.parameters())
    with torch.no_grad():
        x = batch.input
        feature = parts.student.frozen(["stage1"])(x).features["stage1"]
        expected = side.module.branch.eval()(feature)
    torch.testing.assert_close(side.frozen()(x).logits, expected)
    own = set(parts.student.module.state_dict())
    assert own == set(make("scratch").student.module.state_dict())


def test_no_student_moves_before_all_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch is checked together with its trunk: both have to be on one device."""
    order: list[str] = []
    check, prepare = student_builder.check_network, Runtime.prepare

    def checked(*args: Any, **more: Any) -> str:
        order.append("checked")
        return check(*args, **more)

    def moved(self: Runtime, module: torch.nn.Module) -> torch.nn.Module:
        order.extend(["moved"] * isinstance(module, Classifier))
        return prepare(self, module)

    monkeypatch.setattr(student_builder, "check_network", checked)
    monkeypatch.setattr(Runtime, "prepare", moved)
    make("scratch", BRANCH, ALONG)
    assert order == ["checked"] * 2 + ["moved"] * 2


def test_an_average_is_in_eval_mode_and_follows_its_student() -> None:
    parts = make(
        "scratch",
        "teachers={mean: {_target_: distillers.teachers.Average, decay: 0.5, rising: false}}",
        "+distiller.losses.kd={teacher: mean, loss: {_target_: distillers.response.KD}}",
    )
    mean = parts.networks["mean"]
    before = [p.clone() for p in mean.parameters()]
    parts.distiller(parts.source.next()).total.backward()
    assert not any(module.training for module in mean.modules())
    assert not any(p.requires_grad for p in mean.parameters())
    parts.optimizer.step()
    parts.distiller.updated()
    for p, old, new in zip(mean.parameters(), before, parts.student.parameters(), strict=True):
        torch.testing.assert_close(p, 0.5 * old + 0.5 * new)


def weights(network: Classifier) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_turns_alternate_and_survive_a_checkpoint() -> None:
    turns = "turns={a: {of: student, every: 2}, b: {of: students.peer, every: 2, first: 1}}"
    parts = mutual(turns, "optimizer.lr=0.1")

    def moved(parts: Parts) -> list[bool]:
        before = {name: weights(n) for name, n in parts.networks.items()}
        parts.distiller(parts.source.next()).total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        return [
            any(
                not torch.equal(p, q)
                for p, q in zip(before[n], weights(parts.networks[n]), strict=True)
            )
            for n in ("student", "peer")
        ]

    assert moved(parts) == [True, False]
    assert moved(parts) == [False, True]
    again = mutual(turns, "optimizer.lr=0.1")
    moved(parts)
    again.optimizer.load_state_dict(copy.deepcopy(parts.optimizer.state_dict()))
    assert moved(again) == [False, True]


def test_a_students_transform_stays_on_the_host_where_its_network_is_checked() -> None:
    """It goes to the device with it; the meta device stands for one."""
    spec = InputSpec((1, 512), (-1.0, 1.0), (0.0,), (1.0,), rate=8000.0)
    node = {"transform": plain(written("transform", "log_mel")), "mean": [0.5], "std": [0.2]}
    runtime = SimpleNamespace(device=torch.device("meta"))
    available = {"spec": spec, "runtime": runtime, "teacher": None}
    builder = StudentBuilder({"student": node, "students": {}, "teacher": {}}, available)
    seen, transform = builder.spec("student")
    assert (seen.shape, seen.mean) == ((1, 32, 4), (0.5,))
    assert transform is not None
    assert {buffer.device.type for buffer in transform.buffers()} == {"cpu"}
