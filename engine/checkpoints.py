"""Checkpoints of a run: whole or absent, verified when read, and removed file by file."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from core.runtime import Runtime

FOLDER = re.compile(r"(step|partial)-(\d{9,})")  # ours; anything else beside them stays
FILE = re.compile(r"rank(\d+)\.pt")


class Checkpoints:
    """A folder with one subfolder per saved step, which holds one file per rank.

    Only files that a run has written are ever removed, and a folder only once it is empty.

    Args:
        folder: of all checkpoints of a run.
        runtime: rank 0 moves and removes, the others wait for it.
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.folder, self.runtime = folder, runtime

    def whole(self) -> list[Path]:
        """The folders of checkpoints, oldest first; empty ones do not count."""
        return [folder for folder in self._ours("step") if files(folder)]

    def _ours(self, kind: str) -> list[Path]:
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        found = [(FOLDER.fullmatch(p.name), p) for p in entries if p.is_dir()]
        named = [(int(m[2]), p) for m, p in found if m and m[1] == kind]
        return [path for _, path in sorted(named)]

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write this rank's state; the checkpoint appears when every rank's is on disk.

        Raises:
            ValueError: if it cannot be written; the last good checkpoint is untouched.
        """
        partial, final = (self.folder / f"{kind}-{step:09d}" for kind in ("partial", "step"))
        failure = None
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with open(self._file(partial), "wb") as file:
                torch.save(state | {"ranks": self.runtime.world_size}, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            failure = error
        if self.runtime.any(failure is not None):
            if self.runtime.main:
                _discard(partial)
            kept = self.whole()
            raise ValueError(
                f"could not save the checkpoint of step {step} in {self.folder} ({failure}). "
                f"{f'The one before, {kept[-1].name}, is intact' if kept else 'There is none yet'}"
                ": free some space and run the same command again"
            ) from failure
        self.runtime.barrier()
        if self.runtime.main:
            _place(partial, final)
            self._tidy(final)
        self.runtime.barrier()

    def load(self) -> dict[str, Any] | None:
        """This rank's state in the last checkpoint, or None at the start of a run.

        Raises:
            ValueError: if it was saved by another number of processes, or is damaged; every rank
                raises it, whichever file is concerned.
        """
        found = self.whole()
        state = failure = None
        try:
            state = self._read(found[-1]) if found else None
        except ValueError as error:
            failure = error
        if self.runtime.any(failure is not None):
            raise failure or ValueError(f"another process could not read {found[-1]}")
        if self.runtime.main:
            self._tidy(found[-1] if found else None)
        return state

    def _read(self, folder: Path) -> dict[str, Any]:
        ranks, path, there = self.runtime.world_size, self._file(folder), files(folder)
        try:
            state = read_checkpoint(path if path in there else there[0])
            if "step" not in state or "distiller" not in state:
                raise ValueError(f"{path} is damaged (not the state of a run)")
        except ValueError as error:
            raise ValueError(f"{error}: {self._without(folder, path)}") from error
        saved = state.pop("ranks", len(there))
        if saved != ranks:
            raise ValueError(
                f"{folder} was saved by {saved} process(es), not {ranks}: "
                f"use --nproc-per-node={saved}, or overwrite=true to start again"
            )
        if lost := [p for r in range(ranks) if (p := folder / f"rank{r}.pt") not in there]:
            raise ValueError(f"{lost[0]} is missing: {self._without(folder, lost[0])}")
        return state

    def _file(self, folder: Path) -> Path:
        return folder / f"rank{self.runtime.rank}.pt"

    def _without(self, folder: Path, path: Path) -> str:
        """How to go on without a file of a checkpoint."""
        older = self.whole()[:-1]
        start = f"from {older[-1].name}" if older else "from the beginning (it is the only one)"
        return (
            f"put a good copy of {path.name} there, or remove {folder}, and the same command goes "
            f"on {start}; overwrite=true starts again"
        )

    def _tidy(self, newest: Path | None) -> None:
        """Remove what a kill left half written or half removed, and all that is older."""
        for folder in self._ours("partial"):
            _discard(folder)
        steps = self._ours("step")
        for folder in steps[: steps.index(newest)] if newest else ():
            _discard(folder)
        for folder in self._ours("step"):
            if not any(folder.iterdir()):
                folder.rmdir()

    def remove(self) -> None:
        """Remove every checkpoint, and the folder if nothing else is in it."""
        for folder in self._ours("partial") + self._ours("step"):
            _discard(folder)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def files(folder: Path) -> list[Path]:
    """The ranks' files of one checkpoint, in the order of the ranks."""
    found = [(m, p) for p in folder.iterdir() if (m := FILE.fullmatch(p.name))]
    return [path for _, path in sorted((int(m[1]), path) for m, path in found)]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in one file, once its checksums are verified (torch.load checks none).

    torch.save writes a zip archive, which has a CRC-32 of each of its entries. Reading them takes
    under a second for a gigabyte, and a megabyte of memory.

    Raises:
        ValueError: naming the file, where a checksum is wrong or it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            raise ValueError(f"wrong checksum of {wrong}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).split("\n")[0][:100] or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason})") from error


def _place(partial: Path, final: Path) -> None:
    """Rename a completely written checkpoint to its final name."""
    if final.is_dir():
        if files(final):  # saved when its step was due, and again by a stop right after
            return
        for entry in final.iterdir():  # not ours
            os.replace(entry, partial / entry.name)
        final.rmdir()
    os.replace(partial, final)


def _discard(folder: Path) -> None:
    for file in files(folder):
        file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
