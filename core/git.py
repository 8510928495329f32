"""The commit that a folder of source is checked out at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from subprocess import SubprocessError, run


def commit_of(folder: Path, paths: Sequence[str] = (".",), new: Sequence[str] = ()) -> str | None:
    """The commit, marked ``-dirty`` where files differ from it; None without git.

    It is None as well where git takes half a minute, as in a tree with millions of new files.

    Args:
        folder: in the working tree.
        paths: git's pathspecs of the tracked files that are compared.
        new: likewise of files that make a difference if they are not tracked.
    """
    try:
        head = _git(folder, "rev-parse", "--short=7", "HEAD")
        changed = _git(folder, "status", "--porcelain", "-uno", "--", *paths)
        if new and not changed:
            changed = _git(folder, "ls-files", "--others", "--exclude-standard", "--", *new)
        return head + "-dirty" * bool(changed)
    except (OSError, SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", *words]
    done = run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
