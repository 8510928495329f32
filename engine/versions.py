"""What computes a run: libraries, threads, the commits of the source, and the files of teachers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.git import commit_of
from engine.choices import ROOT, folders


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
    """A hash of the file of each teacher that has one, by its key: a path tells no content."""
    nodes = {"teacher": config["teacher"]}
    nodes |= {f"teachers.{name}": node for name, node in config["teachers"].items()}
    found = {}
    for name, node in nodes.items():
        if (path := node.get("checkpoint")) and Path(path).expanduser().is_file():
            with open(Path(path).expanduser(), "rb") as file:
                found[f"{name}.checkpoint"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return found


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
