"""The run directory: who may write it, whose it is, and how an earlier run is replaced."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from core.files import write_whole
from core.runtime import Runtime, Stopped
from engine.checkpoints import Checkpoints
from engine.choices import own_folder
from engine.identity import differences, identity
from engine.ownership import (
    CHECKPOINTS,
    CONFIG,
    NEXT,
    PICTURE,
    RESULT,
    STUDENT,
    STUDENTS,
    VERSIONED,
    VERSIONS,
    blocked,
    fault,
    laid_out,
    mapping,
    outdated,
    remove_partial,
    remove_products,
    stranger,
)
from engine.versions import changes, files_read, versions
from engine.warm_start import files_of

LONGEST = 200  # characters of a directory's name, less seed and hash; systems take 255
SCHEMA = 2  # of result.json
POLL = 0.5  # seconds between looks at a lock that another process holds


class RunDirectory:
    """A directory that one process group writes and one configuration owns.

    Args:
        config: the composed configuration; its hash names the directory unless ``run_dir`` does.
        runtime: rank 0 writes, the others wait for it.
        wait: whether to wait for another process that uses the directory, or refuse.

    Raises:
        ValueError: for a directory in use, of another configuration, or of no run.
    """

    def __init__(self, config: DictConfig, runtime: Runtime, wait: bool = False) -> None:
        self.runtime = runtime
        self.config: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        self.identity = identity(self.config)
        self.path = Path(config.run_dir or self._default_path(config))
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS, runtime)
        self.overwrite = bool(config.overwrite)
        if self.overwrite:
            _check_kept(self.config, self.path)
        self.wait = wait

    def _default_path(self, config: DictConfig) -> Path:
        c = config.choices
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        chosen = f"{c.data}-{c.method}-{c.teacher}-{c.student}"
        plain = re.sub(r"[^\w.]+", "-", chosen)[:LONGEST].strip("-")  # safe in a shell
        return Path(config.run_root) / f"{plain}-seed{config.seed}-{digest[:8]}"

    @contextmanager
    def claimed(self) -> Iterator[RunDirectory]:
        """Lock the directory; the lock is released when the process ends, however it ends."""
        created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        handle = self._claim()
        try:
            yield self
        finally:
            if handle is not None:
                with suppress(OSError):  # a folder that is not empty stays, with its parents
                    for folder in created:
                        folder.rmdir()
                os.close(handle)

    def _claim(self) -> int | None:
        """The locked directory, on rank 0; all ranks return together, or raise.

        Rank 0 asks for the lock again and again, and the others hear of it each time: in one long
        wait they would reach the process group's timeout.
        """
        handle = failure = None
        told = False
        while True:
            if self.runtime.main:
                try:
                    handle = self._try()
                except (ValueError, OSError) as error:
                    failure = error
            if self.runtime.any(failure is not None):
                raise failure or ValueError(f"the first process could not claim {self.path}")
            if not self.runtime.any(self.runtime.main and handle is None):
                return handle
            if self.runtime.any(self.runtime.stop_requested):
                raise Stopped(
                    f"stopped while another process works in {self.path}; "
                    "the same command continues it"
                )
            if self.runtime.main and not told:
                print(f"waiting for another process that works in {self.path}", flush=True)
                told = True
            time.sleep(POLL)

    def _try(self) -> int | None:
        """The locked directory, or None while another process has it and we are to wait."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f"{self.path} cannot be a run directory: it, or a folder above it, is a file "
                "or a broken link; give another run_dir=... or run_root=..."
            ) from error
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.stat(self.path)):
                raise FileNotFoundError
            self._check_owner()
        except FileNotFoundError:  # whoever had it has just removed it: make it anew
            os.close(handle)
            return self._try()
        except BlockingIOError:
            os.close(handle)
            if self.wait:
                return None
            raise ValueError(
                f"another process is using the run directory {self.path}: "
                "wait for it, stop it, or give another run_dir=..."
            ) from None
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _check_owner(self) -> None:
        if reason := stranger(self.path):
            raise ValueError(
                f"{self.path} holds files but is not a run directory: give another run_dir=... "
                f"({reason})"
            )
        if reason := blocked(self.path):
            raise ValueError(f"{reason}: move it away, or give another run_dir=...")
        if laid_out(mapping(self.path / NEXT)):  # killed while an earlier run gave way
            self._give_way()
        remove_partial(self.path)
        recorded = self.path / CONFIG
        if self.overwrite or not recorded.exists():
            return
        before = identity(OmegaConf.to_container(OmegaConf.load(recorded)))
        if reason := outdated(before):
            raise ValueError(f"{self.path} {reason}: give another run_dir=..., or overwrite=true")
        changed = differences({k: before.get(k) for k in self.identity}, self.identity)
        if changed:
            raise ValueError(
                f"{self.path} holds a run of another configuration; changed: {', '.join(changed)}. "
                "Give another run_dir=..., or overwrite=true to start again there"
            )

    def begin(self) -> None:
        """Record the configuration and what computes it, once the first step is made.

        An earlier run is removed by ``overwrite`` only here; until then it is not touched.
        """
        if self.runtime.main:
            config = self.path / CONFIG
            text = OmegaConf.to_yaml(OmegaConf.create(self.config))
            if self.overwrite and config.exists():
                write_whole(self.path / NEXT, text)  # from now on the new run is the one
                self._give_way()
            elif not config.exists():
                write_whole(config, text)
            before = mapping(self.path / VERSIONS)
            if not before.keys() >= VERSIONED:  # missing, or damaged
                self._write_versions()
            elif changed := changes(before, self._used()):
                print(changed, flush=True)
        self.overwrite = False
        self.runtime.barrier()

    def _give_way(self) -> None:
        """Remove the earlier run, once the new run's configuration is on disk.

        If this is interrupted, it is done again when the directory is next claimed.
        """
        remove_products(self.path, self.checkpoints)
        self._write_versions()
        os.replace(self.path / NEXT, self.path / CONFIG)

    def _write_versions(self) -> None:
        write_whole(self.path / VERSIONS, json.dumps(self._used()))

    def _used(self) -> dict[str, Any]:
        return versions(own_folder(self.config)) | files_read(self.config)

    def replaced(self) -> list[str]:
        """The keys of files that have other content than when this run was made."""
        before, now = mapping(self.path / VERSIONS), files_read(self.config)
        return [key for key in now if before.get(key, now[key]) != now[key]]

    def say_changed(self) -> None:
        """Print a line if a finished run had other data or another teacher of the same name."""
        if (other := self.replaced()) and self.runtime.main:
            print(
                f"the file of {other[0]} has other content than when this run was made: "
                "overwrite=true, or another run_dir=..., makes it with the new file",
                flush=True,
            )

    def record_steps(self, steps: int) -> None:
        """Set the number of steps, if it is found after the directory is claimed."""
        self.config["steps"] = steps

    def recorded_steps(self) -> int | None:
        """The number of steps of the run that is here and will be continued."""
        found = None if self.overwrite else mapping(self.path / CONFIG).get("steps")
        return found if isinstance(found, int) else None

    def load(self) -> dict[str, Any] | None:
        """This rank's state in the last checkpoint, or None where the run begins."""
        return None if self.overwrite else self.checkpoints.load()

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, unless it is to be run again or a file of it is lost."""
        if self.overwrite or not (self.path / RESULT).exists() or self.lost():
            return None
        return _result(self.path / RESULT)

    def lost(self) -> list[str]:
        """The files of a finished run that are missing or damaged, each with what is wrong."""
        if self.overwrite or not (self.path / RESULT).exists():
            return []
        names = [RESULT, STUDENT]
        if self.checkpoints.whole():  # no figure depends on a picture that nothing can restore
            names.append(PICTURE)
        found = {name: fault(self.path / name) for name in names}
        return [f"{self.path / name} {wrong}" for name, wrong in found.items() if wrong]

    def say_lost(self) -> None:
        """Print which files of a finished run will be made again from its last checkpoint.

        Raises:
            ValueError: if there is none.
        """
        lost = self.lost()
        if not lost:
            return
        found = self.checkpoints.whole()
        if not found:
            raise ValueError(
                f"{'; '.join(lost)}, and no checkpoint remains to restore it from: "
                "put a good copy there, or start again with overwrite=true"
            )
        for line in lost if self.runtime.main else ():
            print(f"{line}: it is restored from {found[-1]}", flush=True)


def _result(path: Path) -> dict[str, Any]:
    """Read a result that :func:`engine.ownership.fault` finds nothing wrong with.

    Raises:
        ValueError: if another version of the code wrote it.
    """
    result: dict[str, Any] = json.loads(path.read_text())
    if result["schema"] != SCHEMA:
        raise ValueError(
            f"another version of the code wrote {path}: its schema is {result['schema']}, but "
            f"this version reads {SCHEMA}. Go on with that version, or give another run_dir=..."
        )
    return result


def _check_kept(config: dict[str, Any], folder: Path) -> None:
    """Raise a ValueError if an earlier run that is to be removed holds a network of the new one."""
    for path in files_of(config).values():
        parent = Path(path).expanduser().resolve().parent
        if parent in (folder.resolve(), folder.resolve() / STUDENTS):
            raise ValueError(
                f"overwrite=true would remove {path}, which this run reads: copy it to another "
                "place, or choose another run_dir=..."
            )
