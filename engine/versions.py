"""What computes a run: libraries, threads, commits, and the files of data and teachers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.git import commit_of
from engine.choices import ROOT, folders
from engine.warm_start import files_of

ENDS = 2**25  # bytes of either end of a file


def versions(own: Path | None = None) -> dict[str, Any]:
    """The content of ``versions.json``.

    Args:
        own: a user's folder of parts, whose commit is named too. New YAML files in its groups and
            new Python files count as changes; what else is new in the working tree does not.
    """
    used = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),  # the bits of a run depend on it
        "commit": commit_of(ROOT.parent),
    }
    if own:
        new = [":(glob)**/*.py", *(f":(glob){group}/*.yaml" for group in folders())]
        used["config_path_commit"] = commit_of(own, new=new)
    return {name: value for name, value in used.items() if value is not None}


def files_read(config: Mapping[str, Any]) -> dict[str, str]:
    """A hash of each file that data or a network is read from, by its key: a path tells no content.

    Folders of inputs are left out: to read all of them may take minutes.
    """
    named: dict[str, Any] = dict(files_of(config))
    for key, value in {**config["data"], **(config["data"].get("dataset") or {})}.items():
        if key.endswith("path"):
            named[f"data.{key}"] = value
    return {
        key: _content(Path(path).expanduser())
        for key, path in named.items()
        if isinstance(path, str) and Path(path).expanduser().is_file()
    }


def _content(path: Path) -> str:
    """A hash of a file; of a large one, of its size, beginning and end, where archives have
    checksums of the rest."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= 2 * ENDS:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        found = hashlib.sha256(str(size).encode() + file.read(ENDS))
        file.seek(size - ENDS)
        found.update(file.read())
    return found.hexdigest()[:16]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A line on what has changed since a run began, or None.

    What an earlier version of the code did not record is left out.
    """
    found = [
        f"{name.replace('_', ' ')} {before[name]}, now {now[name]}"
        for name in before
        if name in now and before[name] != now[name]
    ]
    if not found:
        return None
    return f"since this run began, these have changed, and so may its bits: {'; '.join(found)}"
