"""Scalars for other programs: one JSON object per line, continued after a kill."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path


class Lines:
    """A file of JSON objects, one a line, each written at once.

    A line begins with its step. A step has one line for each occasion on which something was
    written, with other keys: the losses, the test metrics, the findings in synthesized inputs.

    Args:
        path: the file; it appears with the first line.
        length: bytes to keep of what is there; what follows was written by a process that ended
            before it saved a checkpoint, and is written again.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        self.length = content.rfind(b"\n", 0, length) + 1
        if content:
            os.truncate(path, self.length)

    def add(self, values: Mapping[str, float | int]) -> None:
        """Append one object; a value that JSON cannot hold (NaN, infinity) becomes null.

        Raises:
            OSError: if the line cannot be written; nothing of it stays.
        """
        valid = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = json.dumps(valid, allow_nan=False).encode() + b"\n"
        try:
            with open(self.path, "ab") as file:
                file.write(line)
        except OSError:
            with contextlib.suppress(OSError):  # the file may not be there at all
                os.truncate(self.path, self.length)
            raise
        self.length += len(line)
