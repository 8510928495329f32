"""The run directory: who may write it, whose it is, and checkpoints that are whole or absent."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from engine.files import PARTIAL, write_whole
from engine.runtime import Runtime, Stopped

# Where a run and its data lie, and how it is watched, does not change what it computes.
NOT_IDENTITY = ["run_root", "run_dir", "overwrite", "device", "log_every", "checkpoints"]
NOT_IDENTITY += ["data.root", "data.dataset.root"]
LONGEST = 200  # characters of a directory's name, less seed and hash; systems take 255
SCHEMA = 1  # of result.json
POLL = 0.5  # seconds between looks at a lock that another process holds
# What overwrite=true takes away; config.yaml is replaced in one go, so that a kill strands nothing.
OURS = ("result.json", "checkpoints", "student.safetensors", "inputs.png", "versions.json")


class RunDirectory:
    """A directory that one process group writes and one configuration owns.

    Args:
        config: the composed configuration; its hash names the directory unless ``run_dir`` does.
        runtime: rank 0 writes, the others wait for it.
        wait: whether to wait for another process that uses the directory, or refuse.

    Raises:
        ValueError: for a directory in use, of another configuration, or that is no run's.
    """

    def __init__(self, config: DictConfig, runtime: Runtime, wait: bool = False) -> None:
        self.runtime = runtime
        self.config = OmegaConf.to_container(config, resolve=True)
        assert isinstance(self.config, dict)
        self.identity = _identity(self.config)
        self.path = Path(config.run_dir or self._default_path(config))
        self.overwrite = bool(config.overwrite)
        self.wait = wait

    def _default_path(self, config: DictConfig) -> Path:
        c = config.choices
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        chosen = f"{c.data}-{c.method}-{c.teacher}-{c.student}"
        plain = re.sub(r"[^\w.]+", "-", chosen)[:LONGEST].strip("-")  # nothing that a shell reads
        return Path(config.run_root) / f"{plain}-seed{config.seed}-{digest[:8]}"

    @contextmanager
    def claimed(self) -> Iterator[RunDirectory]:
        """Hold the directory; the lock goes with the process, however that ends."""
        created = not self.path.exists()
        handle = self._claim()
        try:
            yield self
        finally:
            if handle is not None:
                if created and not any(self.path.iterdir()):  # nothing was begun
                    self.path.rmdir()
                os.close(handle)

    def _claim(self) -> int | None:
        """The locked directory, on rank 0; all ranks return together, or raise.

        Rank 0 asks for the lock again and again, and the others hear of it each time: in one long
        wait their patience, which is that of the process group, would end.
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
                raise Stopped(f"stopped while another process works in {self.path}")
            if self.runtime.main and not told:
                print(f"waiting for another process that works in {self.path}", flush=True)
                told = True
            time.sleep(POLL)

    def _try(self) -> int | None:
        """The locked directory, or None while another process has it and we are to wait."""
        self.path.mkdir(parents=True, exist_ok=True)
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
        recorded = self.path / "config.yaml"
        if not recorded.exists():
            if any(p.name != recorded.name + PARTIAL for p in self.path.iterdir()):
                raise ValueError(
                    f"{self.path} holds files but is no run directory: give another run_dir=..."
                )
            return
        if self.overwrite:
            return
        before = _read(recorded, lambda p: _identity(OmegaConf.to_container(OmegaConf.load(p))))
        changed = _differences({k: before.get(k) for k in self.identity}, self.identity)
        if changed:
            raise ValueError(
                f"{self.path} holds a run of another configuration; changed: {', '.join(changed)}. "
                "Give another run_dir=..., or overwrite=true to start again there"
            )

    def begin(self) -> None:
        """Record the configuration and what computes it, before the first step.

        An earlier run gives way to ``overwrite`` only here, when all parts of the new one stand.
        """
        if self.runtime.main:
            if self.overwrite:
                for entry in [*OURS, *(p.name for p in self.path.glob("events.out.tfevents.*"))]:
                    _remove(self.path / entry)
            config, versions = self.path / "config.yaml", self.path / "versions.json"
            if self.overwrite or not config.exists():
                write_whole(config, OmegaConf.to_yaml(OmegaConf.create(self.config)))
            if not versions.exists():
                used = {
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "threads": torch.get_num_threads(),  # the bits of a run depend on it
                }
                write_whole(versions, json.dumps(used))
        self.runtime.barrier()

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(p.parent for p in (self.path / "checkpoints").glob("step-*/rank0.pt"))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write this rank's state; the checkpoint appears when every rank's is on disk.

        Raises:
            ValueError: where it cannot be written; the last good checkpoint is untouched.
        """
        folder = self.path / "checkpoints"
        partial, final = folder / f"partial-{step:09d}", folder / f"step-{step:09d}"
        failure = None
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with open(partial / f"rank{self.runtime.rank}.pt", "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            failure = error
        if self.runtime.any(failure is not None):
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.checkpoints()
            raise ValueError(
                f"could not save the checkpoint of step {step} in {folder} ({failure}). "
                f"{f'The one before, {kept[-1].name}, is intact' if kept else 'There is none yet'}"
                ": free some space and run the same command again"
            ) from failure
        self.runtime.barrier()
        if self.runtime.main:
            before = [p for p in self.checkpoints() if p != final]
            if final.exists():  # saved when its step was due, and again by a stop right after
                _remove(partial)
            else:
                os.replace(partial, final)
            for old in before:
                _remove(old)
        self.runtime.barrier()

    def load(self) -> dict[str, Any] | None:
        """This rank's state in the last whole checkpoint, or None at the start of a run.

        Raises:
            ValueError: where the run was started with another number of processes, or the
                checkpoint is damaged.
        """
        if self.runtime.main:
            for partial in (self.path / "checkpoints").glob("partial-*"):
                _remove(partial)
        found = self.checkpoints()
        if not found:
            return None
        ranks = len(list(found[-1].glob("rank*.pt")))
        if ranks != self.runtime.world_size:
            raise ValueError(
                f"{self.path} was started with {ranks} process(es), not {self.runtime.world_size}: "
                f"use --nproc-per-node={ranks}, or overwrite=true to start again"
            )
        return _read(found[-1] / f"rank{self.runtime.rank}.pt", _state)  # type: ignore[no-any-return]

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, unless it is to be run again."""
        path = self.path / "result.json"
        if self.overwrite or not path.exists():
            return None
        return _read(path, _result)  # type: ignore[no-any-return]


def _read(path: Path, parse: Callable[[Path], Any]) -> Any:
    """What a file of a run holds; we write it whole, but disks and other programs may not.

    Raises:
        ValueError: where it is damaged.
    """
    try:
        return parse(path)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).split("\n")[0][:100] or type(error).__name__
        raise ValueError(
            f"{path} is damaged ({reason}): put a good copy there, or start again with another "
            "run_dir=... or overwrite=true"
        ) from error


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if "step" not in state or "distiller" not in state:
        raise ValueError("not the state of a run")
    return state


def _result(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(
            f"another version of the code or another program wrote it, schema {SCHEMA} is read here"
        )
    missing = [k for k in ("teacher", "student", "cost") if k not in result]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return result


def _identity(config: Any) -> dict[str, Any]:
    """What of a configuration decides what its run computes."""
    kept: dict[str, Any] = copy.deepcopy(config)
    for key in NOT_IDENTITY:
        *parents, last = key.split(".")
        node = kept
        for parent in parents:
            node = node.get(parent) or {}
        node.pop(last, None)
    return kept


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*after, *(k for k in before if k not in after)]
        return [
            found
            for key in keys
            for found in _differences(before.get(key), after.get(key), f"{path}{key}.")
        ]
    return [] if before == after else [path.rstrip(".")]
