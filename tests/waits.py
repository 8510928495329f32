"""Where a GPU would be waited for, and how much it would be given to do, seen on a CPU."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
# What answers with a number, or with a tensor whose size depends on numbers.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount"}
READS |= {"_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave.Tensor"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
READERS = {torch.Tensor.tolist, torch.Tensor.cpu}  # a CPU's tensors answer these at once
# What copies from the host's pages, for which the host waits.
MAKES = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "lift_fresh"}
FREE |= {"_unsafe_view", "_reshape_alias", "set_"}


class Waits(TorchDispatchMode):
    """Notes each line of ours that would wait for a device, backward included.

    Everything is on the CPU, and is taken to be on the device: tensors that a part keeps on the
    host on purpose must not be read while this is on.

    Attributes:
        found: how often each was met: what it does, and the file and line that does it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._makers = _Makers(self)

    def __enter__(self) -> Waits:
        self._makers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._makers.__exit__(*raised)

    def note(self, what: str) -> None:
        """At the line nearest to the call, unless it is kornia's, whose draws are on the host."""
        for frame in reversed(traceback.extract_stack()):
            if "/kornia/" in frame.filename:
                return
            path = Path(frame.filename)
            if path.is_relative_to(ROOT) and path != Path(__file__):
                self.found[f"{what}: {path.relative_to(ROOT)}:{frame.lineno} {frame.line}"] += 1
                return

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        masks = name in INDEXED and any(_is_mask(index) for index in args[1])
        if masks or name in READS or f"{name}.{func._schema.overload_name}" in READS:
            self.note(name)
        return func(*args, **(kwargs or {}))


class _Makers(TorchFunctionMode):
    """Notes the calls that make a tensor of the host's values, or the other way round."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        converts = func is torch.as_tensor and isinstance(args[0] if args else None, Tensor)
        if func in MAKES | READERS and not converts:
            self.waits.note(func.__name__)
        return func(*args, **(kwargs or {}))


class Launches(TorchDispatchMode):
    """Counts the operations that would launch something: no views, and no empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        returns = func._schema.returns
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        self.count += not view and func._schema.name.split("::")[1] not in FREE
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
