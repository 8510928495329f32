"""The time that each transfer loss adds to a student step of plain KD, measured in pairs.

    python benchmarks/loss_time.py [--repeat 20] [--losses at,crd] [--json FILE] [key=value ...]

ResNet-56 -> ResNet-20 on 32x32 colour images of 100 classes at batch 64, by default; any override
of `train.py` may follow (precision=bf16, compile=true, batch_size=256, device=cuda). Steps of KD
alternate with steps of KD and the loss, so that a slow machine slows both, and each pair gives one
ratio. Prints the median, minimum and maximum of the ratios. Images are noise, weights are random
and nothing is learned; this does not change the time. Schedules stand at the middle of a run, or at
its beginning if they have switched the loss off by then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step_time import SPEC, extent, now, prepare
from core.runtime import Runtime
from data.dataset import Dataset
from data.spec import Batch
from engine.choices import groups
from engine.config import compose, plain
from engine.parts import Parts

DEFAULTS = [
    *("method=kd", "data=cifar100", "teacher=resnet56", "student=resnet20"),
    *("batch_size=64", "optimizer.lr=0.0"),
]
# Losses that need other networks, in both steps of a pair.
NETWORKS = {
    "simkd": [
        "student=simkd",
        "student.model.backbone={_target_:models.resnet_cifar.resnet_cifar,depth:20}",
        "student.model.features=64",
    ],
    "minilm": [
        *("teacher=vit_digits", "teacher.model.img_size=32", "teacher.model.patch_size=4"),
        *("student=vit_digits", "student.model.img_size=32", "student.model.patch_size=4"),
        "student.model.embed_dim=32",
    ],
}
COUNT = 50_000  # images, as many as CIFAR-100 has: a memory of them has its true size
CLASSES = [str(i) for i in range(100)]
WARM_UP = 3  # pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=20, help="pairs of steps measured")
    parser.add_argument("--losses", help="separated by commas; all by default")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options, overrides = parser.parse_known_args()
    losses = options.losses.split(",") if options.losses else groups()["loss"]
    figures = measure_losses(losses, overrides, options.repeat)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure_losses(losses: Sequence[str], overrides: Sequence[str], repeat: int) -> dict[str, Any]:
    """The ratio of each loss's step to the step of KD in the same pair, over ``repeat`` pairs."""
    settings = [*DEFAULTS, *overrides]
    config = compose(settings)
    runtime = Runtime.of(config)
    data = noise(runtime)
    found = {}
    for loss in losses:
        chosen = [*settings, *NETWORKS.get(loss, [])]
        kd, both = (
            build_steps([*chosen, *added], runtime, data) for added in ([], [f"loss={loss}"])
        )
        found[loss] = compare_steps(kd, both, runtime, repeat)
        print(f"{loss:<16} {found[loss]['ratio']}", flush=True)
    return {
        "losses": found,
        "device": runtime.device_name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "overrides": " ".join(settings),
    }


def noise(runtime: Runtime) -> Dataset:
    """As many images as CIFAR-100 has, of the same size."""

    def read() -> tuple[np.ndarray, np.ndarray]:
        images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
        return images, np.arange(COUNT) % len(CLASSES)

    return Dataset(
        "noise", {"train": read, "test": read}, CLASSES, runtime, mean=SPEC.mean, std=SPEC.std
    )


def build_steps(overrides: Sequence[str], runtime: Runtime, data: Dataset) -> Parts:
    """The parts of a run, with its losses as they are in the middle of it or as it begins."""
    parts = prepare(plain(compose(overrides)), runtime, data)
    for progress in (0.5, 0.1):
        parts.distiller.objective.at(progress)
        if not any(loss.off for loss in parts.distiller.objective.losses.values()):
            break
    return parts


def compare_steps(kd: Parts, both: Parts, runtime: Runtime, repeat: int) -> dict[str, Any]:
    """Seconds of a step of each, and their ratio in each pair; the order alternates."""
    batch = kd.source.next()
    pairs = []
    for i in range(WARM_UP + repeat):
        order = (kd, both) if i % 2 else (both, kd)
        seconds = {id(parts): step(parts, batch, runtime) for parts in order}
        pairs.append((seconds[id(kd)], seconds[id(both)]))
    pairs = pairs[WARM_UP:]
    return {
        "kd_seconds": round(statistics.median(a for a, _ in pairs), 4),
        "seconds": round(statistics.median(b for _, b in pairs), 4),
        "ratio": extent([b / a for a, b in pairs]),
    }


def step(parts: Parts, batch: Batch, runtime: Runtime) -> float:
    """Seconds of one step of the student."""
    began = now(runtime)
    parts.distiller(batch).total.backward()
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    return now(runtime) - began


if __name__ == "__main__":
    main()
