"""Every scheme resumes to the same bits, and runs in bf16, compiled and in two processes."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.runtime import Runtime, Stopped
from data.spec import Batch
from engine.loop import Training
from engine.parts import Parts
from engine.train import run
from models.checkpoint import load_weights
from tests.schemes import SCHEMES, parts_of, run_config

# One of each kind: peers, branches, combinations, features, attacks, pairs, memories, averages,
# discriminators, modalities.
KINDS = ["dml of two kinds", "one", "camkd", "aver with features", "rslad", "cskd", "pskd"]
KINDS += ["mean_teacher", "meal", "kd"]
VARIANTS = ["dml of two kinds", "aver with features", "kd"]  # which the contracts do not see


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


def learn(parts: Parts, steps: int, start: int = 0) -> list[Tensor]:
    values = []
    for step in range(start, start + steps):
        parts.distiller.at(step / 10)
        batch = parts.source.next()
        losses = parts.distiller(batch)
        losses.total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.distiller.updated()
        parts.source.learned(batch, losses)
        values.append(losses.total.detach())
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_in_the_same_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps than an epoch has, so that what is remembered comes back."""
    more = ["steps=8", "checkpoints=4", "evaluations=1", "source.limit=24"]
    config = run_config(kind, tmp_path, *more, f"run_dir={tmp_path / 'a'}")
    run(config, Runtime("cpu"))
    config.run_dir = str(tmp_path / "b")
    whole: Callable[..., None] = Training._learn

    def killed(self: Training, network: nn.Module, batch: Batch, step: int) -> None:
        if step == 5:
            raise Stopped
        whole(self, network, batch, step)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_learn", killed)
        with pytest.raises(Stopped):
            run(config, Runtime("cpu"))
    run(config, Runtime("cpu"))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.safetensors"))
    assert files
    for file in files:
        a, b = (load_weights(tmp_path / folder / file)[0] for folder in "ab")
        assert all(torch.equal(a[key], b[key]) for key in a), file


def test_gradients_reach_all_that_learn_and_nothing_else(scheme: str) -> None:
    parts = parts_of(scheme)
    frozen = parts.distiller.roles.frozen
    before = copy.deepcopy({name: network.module.state_dict() for name, network in frozen.items()})
    parts.distiller.at(0.9)
    parts.distiller(parts.source.next()).total.backward()
    for name, p in parts.distiller.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
    for name, network in frozen.items():
        assert all(p.grad is None for p in network.parameters()), name
        state = network.module.state_dict()
        assert all(torch.equal(value, before[name][key]) for key, value in state.items()), name


@pytest.mark.parametrize("kind", VARIANTS)
def test_in_bf16_losses_stay_in_float32(kind: str) -> None:
    parts = parts_of(kind, "precision=bf16")
    assert all(v.isfinite() and v.dtype == torch.float32 for v in learn(parts, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_networks_learn_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = learn(parts_of(kind), 2)
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m, **k: compiled(m, backend="eager", **k))
    parts = parts_of(kind, "compile=true")
    parts.compile(parts.distiller.runtime)
    torch.testing.assert_close(learn(parts, 2), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_two_processes_give_one_processs_gradients(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(rank, str(tmp_path / "store"), reports))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = [reports.get() for _ in processes]
    for process in processes:
        process.join(60)
    for report in found:
        assert report == [], "\n".join(report)


def _rank(rank: int, store: str, reports: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", datetime.timedelta(seconds=60), 2, rank)
    wrong: list[str] = []
    for scheme in SCHEMES:
        try:
            wrong += [f"{scheme}: {name}" for name in _differing(scheme, rank)]
        except Exception:
            wrong.append(f"{scheme}: {traceback.format_exc()}")
            break  # the other process may be a collective ahead
    reports.put(wrong)
    dist.destroy_process_group()


def _differing(scheme: str, rank: int) -> list[str]:
    """Parameters whose gradient under DDP is not the mean over what the ranks see."""
    parts = parts_of(scheme)
    batch = parts.source.next()
    halves = [_half(batch, r) for r in (0, 1)]
    fresh = copy.deepcopy(parts.distiller.state_dict())
    alone = []
    for half in halves:
        alone.append(_gradients(parts, half))
        parts.distiller.load_state_dict(copy.deepcopy(fresh))
        parts.distiller.zero_grad()
    found = _gradients(parts, halves[rank], wrapped=True)
    differing = []
    for name, gradient in found.items():
        expected = [gradients[name] for gradients in alone]
        if gradient is None or any(g is None for g in expected):
            if gradient is not None or any(g is not None for g in expected):
                differing.append(f"{name} has a gradient in one alone")
        elif not torch.allclose(gradient, sum(expected) / 2, rtol=1e-4, atol=1e-6):  # type: ignore[arg-type]
            differing.append(name)
    return differing


def _half(batch: Batch, rank: int) -> Batch:
    rows = slice(4 * rank, 4 * rank + 4)
    views = {name: x[rows] for name, x in batch.views.items()}
    label, index = (None if x is None else x[rows] for x in (batch.label, batch.index))
    return dataclasses.replace(
        batch, input=batch.input[rows], label=label, index=index, views=views
    )


def _gradients(parts: Parts, batch: Batch, wrapped: bool = False) -> dict[str, Tensor | None]:
    parts.distiller.at(0.9)
    network: nn.Module = parts.distiller
    if wrapped:
        network = DistributedDataParallel(network, broadcast_buffers=False)  # as the runtime does
    network(batch).total.backward()
    return {name: p.grad for name, p in parts.distiller.named_parameters()}
