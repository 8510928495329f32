"""Every method for a few real steps on digits, and the lines that wait for the device.

    python benchmarks/gpu_methods.py [METHOD ...] [--device cuda] [--steps 30] [--runs DIR]

Each run is complete: rounds, log, checkpoint, evaluation, diagnostics, result. Evaluating, logging
and saving have to wait for the device. If a line of a synthesizer or a loss waits, that is a fault.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.runtime import Runtime
from engine.choices import groups
from engine.config import compose
from engine.train import run

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "digits_cnn"
SHORT = {"synthesizer.iterations": 5, "synthesizer.size": 64, "source.warmup": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("methods", nargs="*", help="all by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gpu" / "methods")
    options = parser.parse_args()
    teacher = compose(
        [
            *("method=scratch", f"student={TEACHER}", f"device={options.device}"),
            f"steps={options.teacher_steps}",
            f"run_dir={options.runs / 'teacher'}",
        ]
    )
    run(teacher, Runtime.of(teacher))
    one = partial(tried, device=options.device, steps=options.steps, runs=options.runs)
    methods = options.methods or groups()["method"]
    failed = []
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for method, line in zip(methods, pool.map(one, methods), strict=True):
            print(f"{method:<16} {line}", flush=True)
            failed += [method] if line.startswith("FAILED") else []
    print(f"{len(methods) - len(failed)} of {len(methods)} methods finished", flush=True)
    return int(bool(failed))


def settings(method: str, device: str, steps: int, runs: Path) -> DictConfig:
    """A short run of the method, with every part of a long one."""
    arguments = [f"method={method}", f"device={device}", f"steps={steps}", "precision=bf16"]
    arguments += ["evaluations=2", "checkpoints=2", "log_every=10", f"run_dir={runs / method}"]
    config = compose(arguments)
    if config.needs_teacher and config.choices.teacher == TEACHER:
        config.teacher.checkpoint = str(runs / "teacher" / "student.safetensors")
    for key, value in SHORT.items():
        if OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, value)
    return config


def tried(method: str, device: str, steps: int, runs: Path) -> str:
    """The outcome of one method, in one line."""
    began = time.perf_counter()
    try:
        config = settings(method, device, steps, runs)
        runtime = Runtime.of(config)
        if runtime.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = run(config, runtime)
    except Exception as error:  # a method that fails does not stop the others
        return f"FAILED {''.join(traceback.format_exception(error)[-3:])[-600:]}"
    waits = collections.Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)
    )
    seconds = time.perf_counter() - began
    return f"{seconds:6.1f} s  {result['student']['accuracy']:.2%}  {dict(waits.most_common(8))}"


if __name__ == "__main__":
    sys.exit(main())
