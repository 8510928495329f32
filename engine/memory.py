"""Whether a failure, or a size, is more than the memory that there is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from data.memory import check_memory

# How PyTorch's allocators say so where it is no OutOfMemoryError, and its sizes before them.
WORDS: tuple[str, ...] = ("can't allocate memory", "not enough memory", "CUDA out of memory")
WORDS += ("storage size calculation overflowed", "would overflow", "array is too big")


def is_exhausted(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, or could never do."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, (RuntimeError, ValueError)) and any(w.lower() in said for w in WORDS)


def check_weights(make: Callable[[], Any], what: str) -> None:
    """Refuse a network whose weights do not fit, having built it once without any storage.

    Raises:
        ValueError: for more bytes than the machine has.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            network = make()
        except Exception as error:
            if not is_exhausted(error):
                return  # what needs storage to be built, or has a mistake that building will show
            raise ValueError(f"{what} would take more memory than any machine has") from error
    if isinstance(network, nn.Module):
        tensors = chain(network.parameters(), network.buffers())
        size = sum(t.numel() * t.element_size() for t in tensors if not is_lazy(t))
        check_memory(size, f"the weights of {what}", "choose a smaller network")
