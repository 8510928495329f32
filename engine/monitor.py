"""Monitoring of a run: TensorBoard, a progress line, and checks that values are finite."""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from core.runtime import Runtime
from data.spec import InputSpec
from engine.lines import Lines
from engine.ownership import METRICS, SUFFIX, event_files


class Clock:
    """Seconds spent in each part of a run, across resumes.

    On CUDA, parts are timed by events that are read when the metrics are, so that timing never
    makes the device wait.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.cuda = runtime.device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self._pending: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._pending.append((name, start, end))
        else:
            began = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - began)

    def settle(self) -> dict[str, float]:
        """Read all pending events (waits for the device) and return the sums."""
        for name, start, end in self._pending:
            end.synchronize()
            self._add(name, start.elapsed_time(end) / 1000)
        self._pending.clear()
        return self.seconds

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class LossMeter:
    """Collects scalars on the device and brings them over in one transfer."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows: list[tuple[int, Tensor]] = []

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Keep one step's detached scalars; the names are the same at every step."""
        self._names = list(values)
        self._rows.append((step, torch.stack([v.float() for v in values.values()])))

    def check(self) -> None:
        """Raise what :meth:`flush` would raise now, and keep all values."""
        table = torch.stack([row for _, row in self._rows])
        if not bool(table.isfinite().all()):
            self._raise(table.tolist())

    def flush(self) -> dict[str, float]:
        """Means since the last flush.

        Raises:
            ValueError: for a value that is not finite, naming the loss and the step.
        """
        if not self._rows:
            return {}
        table = torch.stack([row for _, row in self._rows])
        summary = torch.cat([table.mean(0), table.isfinite().all().float()[None]]).tolist()
        if not summary.pop():
            self._raise(table.tolist())
        self._rows.clear()
        return dict(zip(self._names, summary, strict=True))

    def _raise(self, table: list[list[float]]) -> None:
        for (step, _), row in zip(self._rows, table, strict=True):
            for name, value in zip(self._names, row, strict=True):
                if not math.isfinite(value):
                    raise ValueError(
                        f"the loss {name} became {value} at step {step}. "
                        "The last good checkpoint is kept; lower the learning rate or the "
                        "loss's weight, set clip=..., or use precision=fp32"
                    )


def check_finite(state: Any, step: int, path: str = "") -> None:
    """Check that a state is finite: after a finite loss, too, an update may not be.

    Raises:
        ValueError: for a floating-point tensor in a nested state that is not finite, naming it.
    """
    if isinstance(state, Tensor):
        if state.is_floating_point() and not bool(state.isfinite().all()):
            raise ValueError(
                f"{path} is not finite after step {step}. The last good checkpoint "
                "is kept; lower the learning rate, set clip=..., or use precision=fp32"
            )
    elif isinstance(state, dict):
        for key, value in state.items():
            check_finite(value, step, f"{path}.{key}" if path else str(key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state):
            check_finite(value, step, f"{path}[{i}]")


def brief(values: Mapping[str, float]) -> dict[str, float]:
    """Names without the part before the slash, except where two would then be the same."""
    short = {name: name.partition("/")[2] for name in values}
    taken = Counter(short.values())
    return {name if taken[short[name]] > 1 else short[name]: v for name, v in values.items()}


def _written(method: Callable[..., Any]) -> Callable[..., Any]:
    """Raise one message for metrics that could not be written, by TensorBoard's thread or here."""

    @functools.wraps(method)
    def told(board: Board, *args: Any) -> Any:
        try:
            return method(board, *args)
        except OSError as error:
            raise ValueError(
                f"could not write the metrics in {board.folder} ({error.strerror}): "
                "free some space and run the same command again"
            ) from error

    return told


def _silence(args: threading.ExceptHookArgs) -> None:
    """The thread that writes events hands an OSError to the next call, which raises it."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


class Board:
    """TensorBoard events in the run directory, continued after a kill without a repeated step.

    TensorBoard shows groups in the order of their names, so what one looks at first comes first:
    eval, loss, lr, synthesized, system.

    The same scalars stand in metrics.jsonl, for programs. A checkpoint records how long the files
    were; a resume cuts them back to that length. Files that other programs write to the folder stay
    as they are.
    """

    def __init__(self, folder: Path, lengths: Mapping[str, int] | None = None) -> None:
        self.folder = folder
        for file in event_files(folder):
            length = (lengths or {}).get(file.name)
            if length is None:
                file.unlink()
            else:
                with open(file, "rb+") as handle:
                    handle.truncate(length)
        threading.excepthook = _silence
        self.writer = SummaryWriter(str(folder), filename_suffix=SUFFIX)
        self.lines = Lines(folder / METRICS, (lengths or {}).get(METRICS, 0))

    @_written
    def lengths(self) -> dict[str, int]:
        self.writer.flush()
        events = {p.name: p.stat().st_size for p in event_files(self.folder)}
        return events | {METRICS: self.lines.length}

    @_written
    def texts(self, values: Mapping[str, str], step: int) -> None:
        for name, words in values.items():
            self.writer.add_text(name, words, step)

    @_written
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.lines.add({"step": step, **values})

    @_written
    def inputs(self, tag: str, inputs: Tensor, spec: InputSpec, step: int) -> None:
        """A picture of inputs [B, *shape], and what one can hear or read of them."""
        self.writer.add_image(tag, spec.kind.picture(inputs, spec), step)
        sound = spec.kind.sound(inputs, spec)
        if sound is not None and spec.rate is not None:
            self.writer.add_audio(tag, sound, step, round(spec.rate))
        if (text := spec.kind.text(inputs, spec)) is not None:
            # as a block of code, in whose words Markdown reads nothing
            self.writer.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()), step)

    @_written
    def histogram(self, tag: str, fractions: list[float], step: int) -> None:
        """A histogram of the predicted classes, one bar per class."""
        n = len(fractions)
        self.writer.add_histogram_raw(
            tag,
            min=0,
            max=n - 1,
            num=1,
            sum=sum(i * f for i, f in enumerate(fractions)),
            sum_squares=sum(i * i * f for i, f in enumerate(fractions)),
            bucket_limits=[i + 0.5 for i in range(n)],
            bucket_counts=fractions,
            global_step=step,
        )

    @_written
    def summarize(self, settings: dict[str, Any]) -> None:
        """Settings for the HPARAMS page; its metrics are the last values of the scalars.

        Of the three summaries, the first would list the settings that are shown, and TensorBoard
        would take one run's list for all runs. Without it, each run's settings are shown.
        """
        for summary in hparams(settings, {})[1:]:
            self.writer.file_writer.add_summary(summary)  # type: ignore

    @_written
    def close(self) -> None:
        self.writer.close()


class Progress:
    """One live line on a terminal; elsewhere an occasional line.

    Args:
        steps: of the whole run.
        start: the first step of this process.
        every: seconds between updates; by default 0.2 on a terminal and 15 elsewhere.
    """

    def __init__(self, steps: int, start: int = 0, every: float | None = None) -> None:
        self.steps, self.start = steps, start
        self.live = sys.stdout.isatty()
        self.every = every if every is not None else (0.2 if self.live else 15.0)
        self.began = time.perf_counter()
        self.last = self.began if not self.live else 0.0

    def update(self, step: int, images: int, losses: Mapping[str, float], note: str = "") -> None:
        """Show the state after ``step`` steps, of which each used ``images`` inputs."""
        now = time.perf_counter()
        if now - self.last < self.every and not (self.live and step == self.steps):
            return
        self.last = now
        speed = (step - self.start) / max(now - self.began, 1e-9)
        left = (self.steps - step) / max(speed, 1e-9)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in losses.items())
        line = f"step {step}/{self.steps}  {shown}  {speed * images:.0f} images/s  {note}"
        line += f"  {_duration(left)} left"
        print(f"\r\033[K{line}" if self.live else line, end="" if self.live else "\n", flush=True)

    def close(self) -> None:
        if self.live:
            print(flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
