"""The state that a run's parts carry from step to step: taking it and putting it back."""

from __future__ import annotations

from typing import Any

import torch

from core.runtime import Runtime
from engine.parts import Parts


def take(parts: Parts, runtime: Runtime) -> dict[str, Any]:
    """Weights, optimizers, schedules, banks, averages, and the state of random numbers."""
    return runtime.random_state() | {
        "distiller": parts.distiller.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "source": parts.source.state_dict(),
    }


def put_back(state: dict[str, Any], parts: Parts, runtime: Runtime, folder: Any) -> None:
    """Everything that :func:`take` took.

    Raises:
        ValueError: for a state that does not fit these parts.
    """
    try:
        parts.distiller.load_state_dict(state["distiller"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.source.load_state_dict(state["source"])
        runtime.restore_random_state(state)
    except torch.OutOfMemoryError:
        raise
    except (KeyError, RuntimeError, ValueError) as error:  # all that load_state_dict raises
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"the checkpoint of step {state['step']} in {folder} does not fit "
            f"({reason}): another version of the code wrote it. Go on with that version, or "
            "start again with another run_dir=... or overwrite=true"
        ) from error
