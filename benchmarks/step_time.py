"""Time of one cycle, a generator step and five student steps, as `train.py` would take them.

    python benchmarks/step_time.py [--repeat 10] [--json FILE] [key=value ...]

WRN-40-2 -> WRN-16-1 on 32x32 colour images at batch 64 with DAFL's terms, by default; any
override of `train.py` may follow (precision=bf16, compile=true, batch_size=256, device=cuda).
Weights are random: they do not change the time. Prints median, minimum and maximum.
"""

from __future__ import annotations

import argparse
import functools
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

from data.spec import InputSpec
from engine.config import compose
from engine.parts import build_network, build_parts, plain
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=10, help="cycles measured")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options, overrides = parser.parse_known_args()
    figures = measure([*DEFAULTS, *overrides], options.repeat)
    for name, value in figures.items():
        print(f"{name:<28} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(overrides: list[str], repeat: int) -> dict[str, Any]:
    """Seconds of each part over ``repeat`` cycles, after three that warm up."""
    config = compose(overrides)
    settings = plain(config)
    runtime = Runtime(config.device, config.precision, config.compile, config.seed)
    module = build_network(settings["teacher"]["model"], SPEC.shape, CLASSES)
    teacher = Classifier(module, SPEC, CLASSES)
    freeze(teacher)
    runtime.prepare(teacher)
    dataset: Any = SimpleNamespace(spec=SPEC, classes=CLASSES)
    parts = build_parts(settings, dataset, teacher, runtime)
    runtime.compile(parts.student.module)

    def timed(action: Callable[[], Any]) -> tuple[float, Any]:
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        value = action()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began, value

    def learn(batch: Any) -> None:
        parts.distiller(batch).total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()

    per_cycle = settings["source"]["student_steps"]
    cycles: list[float] = []
    updates: list[float] = []
    draws: list[float] = []
    steps: list[float] = []
    for cycle in range(repeat + 3):
        total = 0.0
        for i in range(per_cycle):
            drawing, batch = timed(parts.source.next)
            learning, _ = timed(functools.partial(learn, batch))
            total += drawing + learning
            if cycle >= 3:
                (draws if i else updates).append(drawing)
                steps.append(learning)
        if cycle >= 3:
            cycles.append(total)
    drawn = statistics.median(draws) if draws else 0.0
    return {
        "cycle_seconds": _spread(cycles),
        "generator_step_seconds": _spread([t - drawn for t in updates]),
        "student_step_seconds": _spread([t + drawn for t in steps]),
        "images_per_second": round(config.batch_size * per_cycle / statistics.median(cycles), 1),
        "peak_memory_bytes": runtime.peak_memory(),
        "device": runtime.device_name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "overrides": " ".join(overrides),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(seconds), 4),
        "min": round(min(seconds), 4),
        "max": round(max(seconds), 4),
    }


if __name__ == "__main__":
    main()
