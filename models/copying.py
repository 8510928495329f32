"""Copies of a network that share its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from models.recording import Hook


def shared_copy(module: nn.Module, own_buffers: bool = False) -> nn.Module:
    """A structural copy that shares the storage of weights, without gradients or our own hooks.

    Buffers are shared as well, or are copies. The network's own hooks stay, as some compute weights
    (pruning, and the weight and spectral norm of ``torch.nn.utils``).
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.clone() if own_buffers else buffer
    for m in module.modules():
        for tensor in _computed(vars(m)):  # deepcopy refuses these
            memo.setdefault(id(tensor), tensor.detach())
    copied: nn.Module = copy.deepcopy(module, memo)
    for m in copied.modules():
        m._compiled_call_impl = None
        for hooks in (m._forward_hooks, m._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, Hook)]:
                del hooks[key]
    return copied


def _computed(value: Any) -> Iterator[Tensor]:
    """Tensors with a history in a module's attributes: features that it keeps, normed weights."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _computed(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _computed(item)
