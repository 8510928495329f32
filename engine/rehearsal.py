"""A trial step on parts that are thrown away, which shows mistakes before a run starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from core.objective import FAILED
from core.runtime import Runtime, Stopped
from data.dataset import Dataset
from data.spec import Batch
from distillers.base import TransferLoss
from distillers.distiller import Distiller
from engine.parts import build_parts
from models.classifier import Classifier

Result = TypeVar("Result")
# At most, where a part has such a key. After one update of a warm-up comes one as in the run.
SHORT = {"synthesizer": ("iterations", "updates"), "source": ("warmup",)}


def rehearse(
    settings: dict[str, Any],
    dataset: Dataset,
    teacher: Classifier | None,
    runtime: Runtime,
    others: Mapping[str, Classifier] | None = None,
) -> bool:
    """Build a run's parts and take a step with them: synthesis, every loss, and their gradients.

    Batches are as large as the run's. Losses that their schedules switch on later are computed too.
    The parts are built for this alone, so that nothing that the run will use has changed, a black
    box's count of queries included.

    Args:
        teacher: the run's, or its architecture before it is trained.
        others: teachers besides, likewise.

    Returns:
        Whether a step may leave a parameter without gradient, for which DDP would wait.

    Raises:
        ValueError: for a mistake, naming the loss that made it, if one did.
    """
    alone = copy.copy(runtime)  # no rank waits for another, and nothing is compiled
    alone.world_size, alone.compiled = 1, False
    cuda = [runtime.device] if runtime.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        parts = build_parts(_shortened(settings), dataset, teacher, alone, others)
        batch = _try("the synthesis", parts.source.next, parts.distiller)
        losses = _try("the distiller", lambda: parts.distiller(batch), parts.distiller)
        _try("the gradient of the losses", losses.total.backward, parts.distiller)
        _try("the optimizer", parts.optimizer.step, parts.distiller)
        _try("the source", lambda: parts.source.learned(batch, losses), parts.distiller)
        scheduled = any(loss.get("schedule") for loss in settings["distiller"]["losses"].values())
        return _spare(parts.distiller) or (scheduled and _spare_student(parts.distiller, batch))


def _shortened(settings: dict[str, Any]) -> dict[str, Any]:
    short = copy.deepcopy(settings)
    for group in ("distiller", "synthesis"):
        for loss in ((short[group] or {}).get("losses") or {}).values():
            loss.pop("schedule", None)
    for part, keys in SHORT.items():
        node = short[part] or {}
        node |= {key: min(1, node[key]) for key in keys if key in node}
    return short


def _try(what: str, do: Callable[[], Result], distiller: Distiller) -> Result:
    try:
        return do()
    except (torch.OutOfMemoryError, Stopped):
        raise
    except Exception as error:
        failed = getattr(error, FAILED, None)
        if failed is None and isinstance(error, ValueError):
            raise
        reason = str(error).split("\n")[0][:200]
        if not isinstance(error, (RuntimeError, ValueError)) or not reason:
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        if failed is None:
            raise ValueError(f"{what} fails at the first step: {reason}") from error
        name, loss = failed
        taps = getattr(loss, "taps", ()) if isinstance(loss, TransferLoss) else ()
        read = ", ".join(dict.fromkeys(loss.student_taps + loss.teacher_taps)) if taps else ""
        raise ValueError(
            f"loss {name}: {reason}" + (f" (it reads the taps {read})" if read else "")
        ) from error


def _spare(distiller: Distiller) -> bool:
    return any(p.requires_grad and p.grad is None for p in distiller.parameters())


def _spare_student(distiller: Distiller, batch: Batch) -> bool:
    """Whether some of the student's parameters are reached only by losses that can be off."""
    distiller.student.zero_grad()
    distiller.student(batch.input).logits.sum().backward()
    return any(p.requires_grad and p.grad is None for p in distiller.student.parameters())
