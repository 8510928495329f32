"""Under DDP every transfer loss gives the gradients that one process finds."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import functools
import multiprocessing
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.spec import Batch
from engine.parts import Parts
from tests.distillers.test_memory import misremembered
from tests.test_losses import TERMS, make


def test_two_processes_give_one_processs_gradients(tmp_path: Path) -> None:
    """All losses, and a memory, in two processes; each sees half of what one process sees."""
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
    checks = {"memory": lambda: misremembered(rank)}
    checks |= {loss: functools.partial(_differing, loss) for loss in TERMS}
    wrong = []
    for name, check in checks.items():
        try:
            wrong += [f"{name}: {found}" for found in check()]
        except Exception:
            wrong.append(f"{name}: {traceback.format_exc()}")
            break  # the other process may be a collective ahead
    reports.put(wrong)
    dist.destroy_process_group()


def _differing(loss: str) -> list[str]:
    """Names of parameters whose gradient under DDP is not the mean over what the ranks see.

    That is what one process finds that goes through both halves of the batch. (Losses that relate
    the inputs of a batch relate those of one rank.)
    """
    parts = make(loss)
    batch = parts.source.next()
    halves = [_half(batch, rank) for rank in (0, 1)]
    fresh = copy.deepcopy(parts.distiller.state_dict())
    alone = []
    for half in halves:
        alone.append(_gradients(parts, half))
        parts.distiller.load_state_dict(copy.deepcopy(fresh))
        parts.distiller.zero_grad()
    found = _gradients(parts, halves[dist.get_rank()], wrapped=True)
    differing = []
    for name, gradient in found.items():
        expected = [gradients[name] for gradients in alone]
        if any(g is None for g in (gradient, *expected)):
            if any(g is not None for g in (gradient, *expected)):
                differing.append(f"{name} has a gradient in one alone")
        elif not torch.allclose(gradient, sum(expected) / 2, rtol=1e-4, atol=1e-6):
            differing.append(name)
    return differing


def _half(batch: Batch, rank: int) -> Batch:
    """The first or second half of everything in a batch."""
    rows = slice(4 * rank, 4 * rank + 4)
    parts = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    views = {name: x[rows] for name, x in parts.pop("views").items()}
    kept = {name: None if x is None else x[rows] for name, x in parts.items()}
    return Batch(**kept, views=views)


def _gradients(parts: Parts, batch: Batch, wrapped: bool = False) -> dict[str, Tensor | None]:
    parts.distiller.objective.at(0.05)
    network: nn.Module = parts.distiller
    if wrapped:
        network = DistributedDataParallel(network, broadcast_buffers=False)  # as the runtime does
    network(batch).total.backward()
    return {name: p.grad for name, p in parts.distiller.named_parameters()}
