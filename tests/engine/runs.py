"""Runs in processes of their own, which end at a chosen moment, and what they leave compared.

A fork server imports everything once, so that each of the many processes starts at once. What
ends them is a real signal: nothing of a process can hold it up or tidy after it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "device=cpu",
    "teacher.model.width=8",
    "student.model.width=4",
    "generator.channels=16",
    "steps=24",
    "batch_size=16",
    "evaluations=3",
    "checkpoints=6",
    "log_every=3",
]
KINDS = ("eval/", "loss/", "lr/", "synthesized/")  # less "system/": speed, memory and time
_processes = multiprocessing.get_context("forkserver")
# beside the program, what it imports late
_LATE = ["sklearn.datasets", "torch._dynamo", "PIL.PngImagePlugin"]
_processes.set_forkserver_preload(["train", "tests.engine.runs", *_LATE])


class Run:
    """``python train.py ARGUMENTS`` in another process; its output goes to a file.

    Args:
        moment: the name of a function below that prepares the process's end, and its arguments.
    """

    def __init__(
        self, arguments: list[str], log: Path, moment: tuple[Any, ...] = (), **environment: str
    ) -> None:
        self.log = log
        with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"):
            forkserver.ensure_running()  # once
        settings = (arguments, str(log), moment, environment)
        self.process = _processes.Process(target=_child, args=settings)
        self.process.start()

    def wait(self) -> int:
        """The exit code; minus the signal's number where one ended the process."""
        self.process.join(120)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running: {self.output}")
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text()


def _child(
    arguments: list[str], log: str, moment: tuple[Any, ...], environment: dict[str, str]
) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    import train

    if moment:
        globals()[moment[0]](*moment[1:])
    code = train.main(arguments)
    sys.stdout.flush()
    sys.exit(code)


def _die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def at_step(step: int, number: int = signal.SIGKILL, times: int = 1, method: str = "any") -> None:
    """Send a signal to this process when the student is about to take a step."""
    from engine.train import Training

    learn = Training._learn

    def last(self: Training, network: Any, batch: Any, now: int) -> None:
        if now == step and method in ("any", self.config["choices"]["method"]):
            for _ in range(times):
                _die(number)
        learn(self, network, batch, now)

    Training._learn = last  # type: ignore[method-assign]


def in_inversion(iteration: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to this process in the midst of a round that optimises images."""
    from generators.observer import Observer

    observe, calls = Observer.__call__, Counter[str]()

    def last(self: Observer, *args: Any, **options: Any) -> Any:
        calls["all"] += 1
        if calls["all"] == iteration:
            _die(number)
        return observe(self, *args, **options)

    Observer.__call__ = last  # type: ignore[method-assign]


def in_save(fraction: float, nth: int = 1) -> None:
    """Die when so much of the nth checkpoint's file is written."""
    import io

    save, calls = torch.save, Counter[str]()

    def last(state: Any, file: Any) -> None:
        calls["all"] += 1
        if calls["all"] < nth:
            return save(state, file)
        buffer = io.BytesIO()
        save(state, buffer)
        file.write(buffer.getvalue()[: int(fraction * buffer.tell())])
        file.flush()
        _die()

    torch.save = last


def at_replace(name: str, before: bool) -> None:
    """Die right before, or right after, a file or folder with this in its name appears."""
    replace = os.replace

    def last(source: Any, target: Any) -> None:
        chosen = name in str(target)
        if chosen and before:
            _die()
        replace(source, target)
        if chosen:
            _die()

    os.replace = last  # type: ignore[assignment]


def poisoned(step: int) -> None:
    """The images of one step are not numbers."""
    from engine.train import Training

    learn = Training._learn

    def last(self: Training, network: Any, batch: Any, now: int) -> None:
        if now == step:
            batch.input = batch.input * float("nan")
        learn(self, network, batch, now)

    Training._learn = last  # type: ignore[method-assign]


def on_a_full_disk(size: int) -> None:
    """No file may grow beyond the size, except for what is printed."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def ranks(
    arguments: list[str], folder: Path, moments: tuple[tuple[Any, ...], ...] = ((), ())
) -> list[Run]:
    """One run in as many processes as there are moments, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(moments))}
    return [
        Run(
            arguments, folder / f"log{rank}", moment, RANK=str(rank), LOCAL_RANK=str(rank), **shared
        )
        for rank, moment in enumerate(moments)
    ]


def checkpoint(run: Path, rank: int = 0) -> dict[str, Any]:
    """The last checkpoint, less what may differ: how long things took."""
    found = sorted(run.glob(f"checkpoints/step-*/rank{rank}.pt"))
    state: dict[str, Any] = torch.load(found[-1], weights_only=True)
    del state["seconds"], state["events"]
    return state


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two states are not the same bits."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in differing(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differing(x, y, f"{path}.{i}")]
    return [] if type(a) is type(b) and a == b else [path]


def events(run: Path) -> Counter[tuple[str, int]]:
    """How often each (tag, step) stands in the event files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return Counter(
        (value.tag, event.step)
        for file in sorted(run.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def scalars(run: Path) -> dict[tuple[str, int], bytes]:
    """The values in the event files, less what may differ: speed, memory and time."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        (value.tag, event.step): value.tensor.SerializeToString()
        for file in sorted(run.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag.startswith(KINDS)
    }


def lines(run: Path) -> dict[tuple[str, int], float]:
    """The values in metrics.jsonl, of which none stands there twice."""
    found: dict[tuple[str, int], float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            assert (name, step) not in found
            found[name, step] = value
    return found


def card(run: Path) -> list[str]:
    """The lines of the model card, less what may differ: time and memory."""
    text = (run / "README.md").read_text().splitlines()
    return [line for line in text if not line.startswith(("| time |", "| memory |"))]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
