"""Files that are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

PARTIAL = ".partial"  # of the name, while a file is being written


def write_whole(path: Path, *content: bytes | str | memoryview) -> None:
    """Write a file under another name, synchronise it to disk, and rename it.

    Args:
        path: of the file.
        content: its parts, one after the other.

    Raises:
        ValueError: where it cannot be written, on a full disk for one; what was there stays.
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
    """Give a file that is in the way another name, which no file has; returns it."""
    names = (path.with_name(f"{path.name}.kept{n or ''}") for n in itertools.count())
    aside = next(name for name in names if not os.path.lexists(name))
    os.replace(path, aside)
    return aside
