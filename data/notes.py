"""Notes about data, each printed once even if the data is opened again."""

from __future__ import annotations

from core.runtime import Runtime

_said: set[str] = set()


def note(runtime: Runtime, line: str) -> None:
    """Print a line, on one rank only, unless this process has printed it before.

    A run that trains its teacher opens its data twice: for the teacher and for itself.
    """
    if runtime.main and line not in _said:
        _said.add(line)
        print(line, flush=True)
