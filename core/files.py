"""Atomic writes: a file is whole or absent, however the process that writes it ends."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

PARTIAL = ".partial"  # suffix of a file that is being written


def write_whole(path: Path, *content: bytes | str | memoryview) -> None:
    """Write a file under another name, synchronise it to disk, and rename it.

    Args:
        path: of the file.
        content: its parts, one after the other.

    Raises:
        ValueError: if it cannot be written, such as on a full disk; the old file stays.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        try:
            with open(temporary, "wb") as file:
                for part in content:
                    file.write(part.encode() if isinstance(part, str) else part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error


def keep_aside(path: Path) -> Path:
    """Rename a file that is in the way to an unused name, and return that."""
    names = (path.with_name(f"{path.name}.kept{n or ''}") for n in itertools.count())
    aside = next(name for name in names if not os.path.lexists(name))
    os.replace(path, aside)
    return aside
