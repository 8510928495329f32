"""A few real steps of every method, and the lines that wait for the device.

    python benchmarks/gpu_methods.py [CASE ...] [--device cuda] [--steps 30] [--runs DIR]

A case is a method on digits, a method on another modality (`dfq-signal`), or a data-free method
whose student sees inputs through a transform (`reverie-edges`). Each run is complete: rounds, log,
checkpoint, evaluation, diagnostics, result. Evaluating, logging and saving have to wait for the
device. If a line of a synthesizer or a loss waits, that is a fault.
"""

from __future__ import annotations

import argparse
import collections
import csv
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
SHORT = {"synthesizer.iterations": 5, "synthesizer.size": 128, "source.warmup": 1}
KINDS = {"image": "digits", "signal": "two_tones", "vector": "breast_cancer", "text": "csv_text"}
BEYOND = ("dfq", "reverie", "fast_dfkd", "cmi", "deep_inversion", "dfad")
TRANSFORMS = {"edges": "image", "fourier": "image", "log_mel": "signal"}  # and what they take
SUBJECTS = {"bank": ("account", "loan", "interest"), "travel": ("train", "hotel", "luggage")}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("cases", nargs="*", help="all by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gpu" / "methods")
    options = parser.parse_args()
    known = cases()
    if unknown := set(options.cases) - set(known):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    options.runs.mkdir(parents=True, exist_ok=True)
    write_texts(options.runs / "texts.csv")
    chosen = options.cases or list(known)
    shared = {"device": options.device, "runs": options.runs}
    train = partial(train_teacher, steps=options.teacher_steps, **shared)
    one = partial(tried, steps=options.steps, **shared)
    failed = []
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(train, sorted({known[case][0] for case in chosen})))
        for case, line in zip(chosen, pool.map(one, chosen), strict=True):
            print(f"{case:<24} {line}", flush=True)
            failed += [case] if line.startswith("FAILED") else []
    print(f"{len(chosen) - len(failed)} of {len(chosen)} cases finished", flush=True)
    return int(bool(failed))


def cases() -> dict[str, tuple[str, list[str]]]:
    """The modality of every case, and its overrides."""
    found = {method: ("image", [f"method={method}"]) for method in groups()["method"]}
    for kind in list(KINDS)[1:]:
        found |= {f"{method}-{kind}": (kind, [f"method={method}"]) for method in BEYOND}
    for transform, kind in TRANSFORMS.items():
        overrides = ["method=reverie", f"student.transform={transform}", "student=digits_cnn_small"]
        found[f"reverie-{transform}"] = (kind, overrides)
    return found


def write_texts(path: Path) -> None:
    """A small data set of texts: sixty sentences on two subjects."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(60):
            subject = list(SUBJECTS)[i % 2]
            first, second = (SUBJECTS[subject][i // k % 3] for k in (2, 6))
            rows.writerow([f"tell me about my {first} and the {second}", subject])


def given(kind: str, device: str, runs: Path) -> list[str]:
    """The overrides of all cases of a modality."""
    path = [f"data.path={runs / 'texts.csv'}"] if kind == "text" else []
    return [f"data={KINDS[kind]}", *path, f"device={device}"]


def train_teacher(kind: str, steps: int, device: str, runs: Path) -> None:
    """The teacher of all cases of a modality."""
    network = compose(given(kind, device, runs)).choices.teacher
    arguments = ["method=scratch", f"student={network}", f"steps={steps}"]
    config = compose([*given(kind, device, runs), *arguments, f"run_dir={runs / kind}"])
    run(config, Runtime.of(config))


def settings(case: str, device: str, steps: int, runs: Path) -> DictConfig:
    """A short run of a case, with every part of a long one."""
    kind, overrides = cases()[case]
    arguments = [*given(kind, device, runs), *overrides, f"steps={steps}", "precision=bf16"]
    arguments += ["evaluations=2", "checkpoints=2", "log_every=10", f"run_dir={runs / case}"]
    config = compose(arguments)
    usual = compose(given(kind, device, runs)).choices.teacher
    if config.needs_teacher and config.choices.teacher == usual:
        config.teacher.checkpoint = str(runs / kind / "student.safetensors")
    for key, value in SHORT.items():
        if OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, value)
    return config


def tried(case: str, device: str, steps: int, runs: Path) -> str:
    """The outcome of one case, in one line."""
    began = time.perf_counter()
    try:
        config = settings(case, device, steps, runs)
        runtime = Runtime.of(config)
        if runtime.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = run(config, runtime)
    except Exception as error:  # a case that fails does not stop the others
        return f"FAILED {''.join(traceback.format_exception(error)[-3:])[-600:]}"
    waits = collections.Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)
    )
    seconds = time.perf_counter() - began
    return f"{seconds:6.1f} s  {result['student']['accuracy']:.2%}  {dict(waits.most_common(8))}"


if __name__ == "__main__":
    sys.exit(main())
