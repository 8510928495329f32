"""Time of one cycle, a generator step and five student steps, as in `train.py`.

    python benchmarks/step_time.py [--repeat 10] [--json FILE] [key=value ...]

WRN-40-2 -> WRN-16-1 on 32x32 colour images at batch 64 with DAFL's losses, by default; any
override of `train.py` may follow (precision=bf16, compile=true, batch_size=256, device=cuda).
Weights are random; this does not change the time. Clip and EMA
are timed too if they are on. Prints median, minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.runtime import Runtime
from data.dataset import Dataset
from data.spec import InputSpec
from engine.config import compose, plain
from engine.loop import Training
from engine.monitor import Clock, LossMeter
from engine.networks import build_network
from engine.parts import Parts, build_parts
from engine.probe import Inputs
from models.classifier import Classifier
from models.pretrained import freeze

DEFAULTS = [
    "method=dafl",
    "data=cifar10",
    "teacher=wrn_40_2",
    "student=wrn_16_1",
    "batch_size=64",
    "source.student_steps=5",
    "source.streams.fresh.reuse=false",
]
SPEC = InputSpec((3, 32, 32), (0.0, 1.0), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
CLASSES = tuple(str(i) for i in range(10))
WARM_UP = 3  # cycles


def main(description: str, measure_step: Callable[[list[str], int], dict[str, Any]]) -> None:
    """Read the command line, measure, and print the figures; plain_step.py uses this too."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=10, help="cycles measured")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options, overrides = parser.parse_known_args()
    figures = measure_step([*DEFAULTS, *overrides], options.repeat)
    for name, value in figures.items():
        print(f"{name:<28} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure_step(overrides: list[str], repeat: int) -> dict[str, Any]:
    """Seconds of each part over ``repeat`` cycles, after warm-up cycles."""
    config = compose(overrides)
    runtime = Runtime.of(config)
    training = loop(plain(config), runtime)
    per_cycle = config.source.student_steps
    cycles = [timed_cycle(training, per_cycle) for _ in range(WARM_UP + repeat)][WARM_UP:]
    totals = [seconds["cycle"] for seconds in cycles]
    # of a batch alone, where nothing is updated
    draws = [seconds.get("draw", 0.0) / max(per_cycle - 1, 1) for seconds in cycles]
    pairs = list(zip(cycles, draws, strict=True))
    return {
        "cycle_seconds": extent(totals),
        "generator_step_seconds": extent([seconds["update"] - draw for seconds, draw in pairs]),
        "student_step_seconds": extent([s["learn"] / per_cycle + draw for s, draw in pairs]),
        "images_per_second": round(config.batch_size * per_cycle / statistics.median(totals), 1),
        "peak_memory_bytes": runtime.peak_memory(),
        "device": runtime.device_name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "overrides": " ".join(overrides),
    }


def loop(settings: dict[str, Any], runtime: Runtime) -> Training:
    """The loop of a run whose data are a few black images, with an untrained teacher."""

    def read() -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(CLASSES), *SPEC.shape[1:], 3), np.uint8), np.arange(len(CLASSES))

    splits = {"train": read, "test": read}
    data = Dataset("black", splits, CLASSES, runtime, mean=SPEC.mean, std=SPEC.std)
    parts = prepare(settings, runtime, data)
    inputs = Inputs(data.open("test"), "black images")
    return Training(settings, parts, parts.teacher, inputs, None, runtime)


def prepare(settings: dict[str, Any], runtime: Runtime, dataset: Dataset) -> Parts:
    """The parts of a run with an untrained teacher."""
    spec, classes = dataset.spec, tuple(dataset.classes)
    module = build_network(settings["teacher"]["model"], spec.shape, classes)
    teacher = freeze(Classifier(module, spec, classes))
    runtime.prepare(teacher)
    parts = build_parts(settings, dataset, teacher, runtime)
    parts.compile(runtime)
    return parts


def timed_cycle(training: Training, steps: int) -> dict[str, float]:
    """Seconds of a ``cycle``, and of its parts: ``update`` (with the first batch), ``draw``
    (all other batches) and ``learn`` (all of the student's steps).

    The host waits for the device only at both ends of the cycle; device events time the parts.
    """
    began = now(training.runtime)
    clock = cycle(training, steps)
    total = now(training.runtime) - began
    return {"cycle": total, **clock.settle()}


def cycle(training: Training, steps: int) -> Clock:
    """Everything that a run does in a cycle, with clip, EMA and meter, except for logging."""
    clock = Clock(training.runtime)
    for i in range(steps):
        with clock.part("draw" if i else "update"):
            batch = training.parts.source.next()
        with clock.part("learn"):
            training._learn(training.parts.distiller, batch, i)
    training.meter = LossMeter()  # of which a run keeps no more than log_every steps
    return clock


def now(runtime: Runtime) -> float:
    """The time once the device has finished all its work."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def extent(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


if __name__ == "__main__":
    main(str(__doc__), measure_step)
