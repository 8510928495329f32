"""Console output of a run, which goes on even if its output cannot be written."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import torch.distributed as dist

from core.memory import is_exhausted

SMALLER = """
The last good checkpoint is kept, and the same command goes on from it where more memory is free.
Otherwise, give another run_dir=... and a smaller batch_size or synthesizer.size, or
precision=bf16."""


class _Unbroken:
    """A stream that goes mute once its reader is gone (``| head -1``) or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.broken = False

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, method: Any, *args: Any) -> None:
        if self.broken:
            return
        try:
            method(*args)
        except OSError:
            self.broken = True
            with contextlib.suppress(OSError, ValueError):  # Python flushes once more at its end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """A context in which a failed print does not end the program."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (s and _Unbroken(s) for s in (out, err))  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def explain(error: Exception) -> int:
    """Print on stderr what ended a run, once for all ranks; returns the exit code.

    1 for a user error, 70 (BSD's "internal software error") for anything unforeseen.
    """
    if isinstance(error, (ValueError, OSError)):
        said = (
            _one_line(error) if isinstance(error, OSError) else str(error)
        )  # names have any length
        code, text = 1, f"error: {said}"
    elif is_exhausted(error):
        code, text = 1, f"error: out of memory: {_one_line(error)}{SMALLER}"
    else:
        code, text = (
            70,
            (
                f"error: this should not happen: {type(error).__name__}: {_one_line(error)}\n"
                "The last checkpoint, if any, is kept, and the same command goes on from it. "
                "Please report it as an issue, with what `python -X dev train.py ...` shows"
            ),
        )
    if _is_first(text):
        print(text, file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _is_first(text: str) -> bool:
    """Whether no other rank has printed it; if they cannot be asked, rank 0 prints it."""
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.add(f"said/{text}", 1)) == 1
    except Exception:  # the process that kept the store has ended
        return True
