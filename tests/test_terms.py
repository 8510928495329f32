"""Every transfer term that ``term=`` can add is held to the same contract, with every source.

Each is built by the engine as a user would, between networks whose features differ in shape.
"""

from __future__ import annotations

import copy
import datetime
import multiprocessing
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.spec import Batch, InputSpec
from engine.config import ROOT, compose
from engine.parts import Parts, build_dataset, build_network, build_parts, plain
from engine.runtime import Runtime
from models.classifier import Classifier
from models.teacher import freeze

TERMS = sorted(p.stem for p in (ROOT / "term").glob("*.yaml"))
SPECIAL = {  # what a term needs beside its name
    "simkd": [
        *("student=simkd", "teacher.model.width=6", "student.model.backbone.width=4"),
        "student.model.features=12",
    ],
    "minilm": ["teacher=vit_digits", "student=vit_digits", "student.model.embed_dim=32"],
}
ON_MAPS = ["teacher.model.width=6", "student.model.width=4"]


def make(term: str, *overrides: str, kind: str = "kd", seed: int = 0) -> Parts:
    arguments = [f"method={kind}", f"term={term}", "batch_size=8", "device=cpu", f"seed={seed}"]
    arguments.append("optimizer.lr=0.01")  # without the warm-up that a run has
    if kind != "kd":
        arguments += ["generator.channels=8"]
    config = plain(compose([*arguments, *SPECIAL.get(term, ON_MAPS), *overrides]))
    runtime = Runtime("cpu", config["precision"], config["compile"], config["seed"])
    dataset = build_dataset(config, runtime)
    torch.manual_seed(7)
    module = build_network(config["teacher"]["model"], dataset.shape, dataset.classes)
    teacher = Classifier(module, InputSpec(dataset.shape, (0.0, 1.0), (0.3,), (0.37,)))
    teacher.classes = dataset.classes
    teacher.train()
    with torch.no_grad():
        teacher(torch.rand(16, *dataset.shape))
    return build_parts(config, dataset, runtime.prepare(freeze(teacher)), runtime)  # type: ignore[arg-type]


def learn(parts: Parts, steps: int, start: int = 0) -> list[Tensor]:
    values = []
    for step in range(start, start + steps):
        parts.distiller.objective.at(step / 10)
        batch = parts.source.next()
        losses = parts.distiller(batch)
        losses.total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.source.learned(batch, losses)
        values.append(losses.total.detach())
    return values


def own(parts: Parts) -> dict[str, nn.Parameter]:
    """What the terms own and want trained."""
    named = parts.distiller.objective.named_parameters()
    return {name: p for name, p in named if p.requires_grad}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(params=TERMS)
def term(request: pytest.FixtureRequest) -> str:
    return request.param


def test_gradients_reach_student_and_term_and_not_the_teacher(term: str) -> None:
    parts = make(term)
    before = copy.deepcopy(parts.teacher.state_dict()) if parts.teacher else {}
    parts.distiller.objective.at(0.05)
    losses = parts.distiller(parts.source.next())
    assert losses.total.isfinite()
    losses.total.backward()
    gradients = [p.grad for p in parts.student.parameters() if p.requires_grad]
    assert any(g is not None and g.any() for g in gradients)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own(parts).values())
    assert parts.teacher is not None
    assert all(p.grad is None for p in parts.teacher.parameters())
    assert same(before, parts.teacher.state_dict())
    ours = {id(p) for p in parts.distiller.parameters() if p.requires_grad}
    assert not ours & {id(p) for p in parts.teacher.parameters()}
    student = {id(p) for p in parts.student.parameters()}
    assert not student & {id(p) for p in own(parts).values()}


def test_what_a_term_owns_is_trained_and_survives_a_round_trip(term: str) -> None:
    first = make(term)
    fresh = {name: p.detach().clone() for name, p in own(first).items()}
    learn(first, 3, start=1)
    for name, p in own(first).items():
        assert not torch.equal(p, fresh[name]), f"{name} stood still"
    torch.manual_seed(99)
    second = make(term, seed=0)
    for part in ("source", "distiller", "optimizer"):
        state = copy.deepcopy(getattr(first, part).state_dict())
        getattr(second, part).load_state_dict(state)
    one = learn(first, 3, start=4)
    torch.rand(5)  # a term that draws from the global generator is found out
    two = learn(second, 3, start=4)
    assert same(one, two)
    assert same(first.distiller.state_dict(), second.distiller.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_synthesized_inputs(term: str, precision: str) -> None:
    parts = make(term, f"precision={precision}", kind="dfad")  # asks no BatchNorm of a teacher
    assert all(value.isfinite() for value in learn(parts, 2))
    assert parts.counts()["real_training_inputs_read"] == 0


def test_bf16_on_real_data_keeps_losses_in_float32(term: str) -> None:
    parts = make(term, "precision=bf16")
    losses = parts.distiller(parts.source.next())
    assert losses.total.dtype == torch.float32
    assert all(value.isfinite() for value in learn(parts, 2))


def test_compiled_networks_give_the_same_losses(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = learn(make(term), 2)
    compiled = nn.Module.compile

    def eager(module: nn.Module, **settings: Any) -> None:
        compiled(module, **{**settings, "backend": "eager"})

    monkeypatch.setattr(nn.Module, "compile", eager)
    parts = make(term, "compile=true")
    parts.distiller.runtime.compile(parts.student.module)
    torch.testing.assert_close(learn(parts, 2), expected, rtol=1e-4, atol=1e-5)


def test_extreme_and_uniform_batches(term: str) -> None:
    """A logit gap of 500 on both sides, and a batch of one class."""
    parts = make(term)
    assert parts.teacher is not None
    for network in (parts.student, parts.distiller.teacher):
        if network is None:
            continue
        path = network.module.taps["logits"]  # type: ignore[index]
        head = network.module.get_submodule(path)
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
            head.bias[0 if network is parts.student else 1] = 500.0
    x = parts.source.next().student_input
    batch = Batch(x, x, torch.full((len(x),), 3), torch.arange(len(x)))
    losses = parts.distiller(batch)
    assert losses.total.isfinite()
    losses.total.backward()
    for p in parts.distiller.parameters():
        assert p.grad is None or p.grad.isfinite().all()


def test_two_processes_give_one_processs_gradients(tmp_path: Path) -> None:
    """All terms in one pair of processes, which both see the batch that one process sees."""
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    arguments = [(rank, str(tmp_path / "store"), reports) for rank in (0, 1)]
    processes = [context.Process(target=_rank, args=a) for a in arguments]
    for process in processes:
        process.start()
    found = [reports.get() for _ in processes]
    for process in processes:
        process.join(60)
    for report in found:
        assert report == [], "\n".join(report)


def _rank(rank: int, store: str, reports: Any) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{store}", limit, 2, rank)
    wrong = []
    for term in TERMS:
        try:
            wrong += [f"{term}: {name}" for name in _differing(term)]
        except Exception:
            wrong.append(f"{term}: {traceback.format_exc()}")
            break  # the other process may be a collective ahead
    reports.put(wrong)
    dist.destroy_process_group()


def _differing(term: str) -> list[str]:
    """Names of parameters whose gradient under DDP is not that of this process alone."""
    alone, both = make(term), make(term)
    batch = alone.source.next()
    for parts in (alone, both):
        parts.distiller.objective.at(0.05)
    alone.distiller(batch).total.backward()
    wrapped = DistributedDataParallel(both.distiller)
    wrapped(batch).total.backward()
    named = dict(alone.distiller.named_parameters())
    differing = []
    for name, p in both.distiller.named_parameters():
        expected = named[name].grad
        if p.grad is None or expected is None:
            if p.grad is not expected:
                differing.append(f"{name} has a gradient in one alone")
        elif not torch.allclose(p.grad, expected, rtol=1e-4, atol=1e-6):
            differing.append(name)
    return differing
