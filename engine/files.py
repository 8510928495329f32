"""Files that are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path

PARTIAL = ".partial"  # of the name, while a file is being written


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file under another name, synchronise it to disk, and rename it.

    Raises:
        ValueError: where it cannot be written, on a full disk for one; what was there stays.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
