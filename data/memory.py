"""Whether data fits into this machine, asked before anything of it is read."""

from __future__ import annotations

import os
from pathlib import Path

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # holds "max" where there is none


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that the process runs in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        return total


def check_memory(needed: int, what: str, advice: str) -> None:
    """Refuse what this machine cannot hold.

    Args:
        needed: bytes.
        what: takes them, for the message.
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
