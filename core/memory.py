"""Check that sizes fit into memory, and recognise errors that mean it has run out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

# What PyTorch's allocators and size checks say in errors other than OutOfMemoryError.
WORDS: tuple[str, ...] = ("can't allocate memory", "not enough memory", "CUDA out of memory")
WORDS += ("storage size calculation overflowed", "would overflow", "array is too big")
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # holds "max" where there is none


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that the process runs in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        return total


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had of a CUDA device, those that PyTorch keeps for reuse included."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def check_memory(needed: int, what: str, advice: str) -> None:
    """Raise for more memory than this machine has.

    Args:
        needed: bytes.
        what: what needs them, for the message.
        advice: what the user can do.

    Raises:
        ValueError: for more bytes than there are, whether or not they are free.
    """
    if needed > (there := machine_memory()):
        raise ValueError(
            f"{what} would take {_gibibytes(needed)}, but this machine has {_gibibytes(there)} of "
            f"memory: {advice}"
        )


def _gibibytes(count: int) -> str:
    if count > 2**80:  # such numbers may be too large to divide or to print
        return "more than 2^50 GiB"
    return f"{count / 2**30:,.1f} GiB"


def is_exhausted(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, or could never suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, (RuntimeError, ValueError)) and any(w.lower() in said for w in WORDS)


def check_weights(make: Callable[[], Any], what: str) -> None:
    """Raise if a network's weights do not fit into memory; it is built without storage for this.

    Raises:
        ValueError: for more bytes than the machine has.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            network = make()
        except Exception as error:
            if not is_exhausted(error):
                return  # it needs storage to be built, or has a mistake that building will show
            raise ValueError(f"{what} would take more memory than any machine has") from error
    if isinstance(network, nn.Module):
        tensors = chain(network.parameters(), network.buffers())
        size = sum(t.numel() * t.element_size() for t in tensors if not is_lazy(t))
        check_memory(size, f"the weights of {what}", "choose a smaller network")
