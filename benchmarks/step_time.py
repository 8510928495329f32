"""Time of one cycle, a generator step and five student steps, as `train.py` would take them.

    python benchmarks/step_time.py [--repeat 10] [--json FILE] [key=value ...]

WRN-40-2 -> WRN-16-1 on 32x32 colour images at batch 64 with DAFL's terms, by default; any
override of `train.py` may follow (precision=bf16, compile=true, batch_size=256, device=cuda).
Weights are random: they do not change the time. Prints median, minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.dataset import Dataset
from data.spec import InputSpec
from engine.config import compose
from engine.parts import Parts, build_network, build_parts, plain
from engine.runtime import Runtime
from models.classifier import Classifier
from models.teacher import freeze

DEFAULTS = [
    "method=dafl",
    "data=cifar10",
    "teacher=wrn_40_2",
    "student=wrn_16_1",
    "batch_size=64",
    "source.student_steps=5",
    "source.reuse=false",
]
SPEC = InputSpec((3, 32, 32), (0.0, 1.0), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
CLASSES = tuple(str(i) for i in range(10))
WARM_UP = 3  # cycles


def main(description: str, measure: Callable[[list[str], int], dict[str, Any]]) -> None:
    """Read the command line, measure, and print the figures; plain_step.py does it alike."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=10, help="cycles measured")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options, overrides = parser.parse_known_args()
    figures = measure([*DEFAULTS, *overrides], options.repeat)
    for name, value in figures.items():
        print(f"{name:<28} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(overrides: list[str], repeat: int) -> dict[str, Any]:
    """Seconds of each part over ``repeat`` cycles, after those that warm up."""
    config = compose(overrides)
    runtime = Runtime.of(config)
    stand_in: Any = SimpleNamespace(spec=SPEC, classes=CLASSES)
    parts = prepare(plain(config), runtime, stand_in)
    per_cycle = config.source.student_steps
    for _ in range(WARM_UP):
        cycle(parts, runtime, per_cycle)
    cycles = [cycle(parts, runtime, per_cycle) for _ in range(repeat)]
    totals = [sum(drawing) + sum(learning) for drawing, learning in cycles]
    later = [seconds for drawing, _ in cycles for seconds in drawing[1:]]
    draw = statistics.median(later) if later else 0.0  # a batch's, where nothing is updated
    return {
        "cycle_seconds": spread(totals),
        "generator_step_seconds": spread([drawing[0] - draw for drawing, _ in cycles]),
        "student_step_seconds": spread([s + draw for _, learning in cycles for s in learning]),
        "images_per_second": round(config.batch_size * per_cycle / statistics.median(totals), 1),
        "peak_memory_bytes": runtime.peak_memory(),
        "device": runtime.device_name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "overrides": " ".join(overrides),
    }


def prepare(settings: dict[str, Any], runtime: Runtime, dataset: Dataset) -> Parts:
    """The parts of a run with an untrained teacher."""
    spec, classes = dataset.spec, tuple(dataset.classes)
    module = build_network(settings["teacher"]["model"], spec.shape, classes)
    teacher = freeze(Classifier(module, spec, classes))
    runtime.prepare(teacher)
    parts = build_parts(settings, dataset, teacher, runtime)
    runtime.compile(parts.student.module)
    return parts


def cycle(parts: Parts, runtime: Runtime, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step for its batch, the first with a generator step, and for the student."""
    drawing, learning = [], []
    for _ in range(steps):
        began = now(runtime)
        batch = parts.source.next()
        drawn = now(runtime)
        parts.distiller(batch).total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        drawing.append(drawn - began)
        learning.append(now(runtime) - drawn)
    return drawing, learning


def now(runtime: Runtime) -> float:
    """Once the device has done all that it was given."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


if __name__ == "__main__":
    main(str(__doc__), measure)
