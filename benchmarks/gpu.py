"""First measurements on a GPU, within a time limit: the most useful jobs come first.

    python benchmarks/gpu.py [--part smoke|train] [--limit SECONDS] [--out DIR] [--runs DIR]
                             [--data FILE.npz] [--teacher FILE] [--device cuda|cpu] [--dry-run]
                             [--only JOB ...]

``smoke`` (12 minutes): the machine; every method for 30 steps; data-free CIFAR-10 with a public
ResNet-20; the tests that need CUDA; step times; a profile; compiled steps. ``train`` (5 minutes):
a WRN-40-2 on CIFAR-10 and NAYER from it to a WRN-16-1. --data is CIFAR-10 as an npz, and --teacher
the ResNet-20's file; jobs that need a file that is not given are skipped.

DIR/PART.json reports on all jobs and is updated after each. A job's output is in DIR/JOB.txt, and
the result of a run in DIR/JOB.json. A job that runs out of time is stopped by SIGTERM: a run then
leaves a checkpoint in --runs, from which the same command continues. --dry-run uses tiny sizes.
Packages that the machine lacks may be in a folder on PYTHONPATH (gpu_deps.sh).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"smoke": 720.0, "train": 300.0}
LEAST = 15.0  # seconds; with less time left no job is started
GRACE = 10.0  # seconds that a stopped job has for saving
TAIL = 2000  # characters of a job's output in the report
IMAGENET = ["teacher.mean=[0.485,0.456,0.406]", "teacher.std=[0.229,0.224,0.225]"]
STEP_TIMES = {  # at 32x32, WRN-40-2 to WRN-16-1
    "dafl": ["method=dafl", "precision=bf16", "batch_size=256"],
    "reverie": [
        *("method=reverie", "precision=bf16", "batch_size=256"),
        *("source.student_steps=1", "source.streams.fresh.reuse=true"),
    ],
    "dafl-large": ["method=dafl", "precision=bf16", "batch_size=1024"],
    "dfq": ["method=dfq", "precision=bf16", "batch_size=256", "source.student_steps=2"],
    "dafl-fp32": ["method=dafl", "precision=fp32", "batch_size=256"],
    "dafl-tf32": ["method=dafl", "precision=fp32", "tf32=true", "batch_size=256"],
}
AUGMENT = "[{_target_: data.augment.RandomCrop},{_target_: data.augment.RandomFlip}]"
TINY = ["steps=2", "batch_size=8", "evaluations=1", "checkpoints=1"]  # of a dry run


@dataclass
class Job:
    """One command.

    Args:
        name: of what it leaves in the output folder.
        command: after the interpreter.
        most: seconds that it may take.
        tiny: what a dry run adds to the command.
        run: the folder of its run, if it is one.
        needs: options that have to be given.
    """

    name: str
    command: list[str]
    most: float
    tiny: list[str] = field(default_factory=list)
    run: Path | None = None
    needs: tuple[str, ...] = ()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=list(LIMITS), default="smoke")
    parser.add_argument("--limit", type=float, help="seconds for the whole part")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu" / "out")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=6000, help="of the student in train")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="JOB", help="these jobs, in this order")
    options = parser.parse_args(arguments)
    for name in ("out", "runs", "data", "teacher"):
        path = getattr(options, name)
        setattr(options, name, path and path.resolve())
        if name in ("data", "teacher") and path and not path.exists():
            parser.error(f"--{name}: there is no file {path}")
    jobs = {job.name: job for job in PARTS[options.part](options)}
    if unknown := set(options.only or []) - set(jobs):
        parser.error(f"--only: no job {', '.join(sorted(unknown))}; there are: {', '.join(jobs)}")
    limit = options.limit or LIMITS[options.part]
    chosen = [jobs[name] for name in options.only or jobs]
    return run_all(chosen, options, time.monotonic() + limit)


def smoke(options: argparse.Namespace) -> list[Job]:
    device = f"device={options.device}"
    once = ["--repeat", "1", "batch_size=2"]
    pytest = ["-m", "pytest", "-m", "gpu", "-q", "--maxfail=40", "--durations=5"]
    pytest += ["-p", "no:cacheprovider", "tests/test_gpu.py"]
    workers = str(min(12, os.cpu_count() or 1))  # each a CUDA context of its own
    pytest += ["-n", workers] if importlib.util.find_spec("xdist") else []
    methods = ["benchmarks/gpu_methods.py", "--device", options.device]
    methods += ["--runs", str(options.runs / "methods"), "--processes", workers]
    few = ["kd", "dfq-text", "--steps", "2", "--teacher-steps", "2", "--processes", "1"]
    times = [
        Job(f"step_time-{name}", ["benchmarks/step_time.py", *overrides, device], 30, once)
        for name, overrides in STEP_TIMES.items()
    ]
    plain = ["benchmarks/plain_step.py", "precision=bf16", "batch_size=256", device]
    compiled = ["benchmarks/step_time.py", *STEP_TIMES["dafl"], device, "compile=true"]
    profiled = ["benchmarks/gpu_profile.py", *STEP_TIMES["dafl"], device]
    return [
        Job("machine", ["benchmarks/gpu_machine.py", options.device], 60),
        Job("methods", methods, 120, few),
        public_teacher(options),
        Job("test_gpu", pytest, 110, ["--collect-only"]),
        *times,
        Job("plain_step", plain, 40, once),
        Job("profile", profiled, 40, ["batch_size=2"]),
        Job("step_time-compiled", compiled, 240, [*once, "compile=false"]),
    ]


def public_teacher(options: argparse.Namespace) -> Job:
    """Data-free: only the test split of the data is read."""
    run = options.runs / "dfq"
    command = ["train.py", "method=dfq", "teacher=resnet20", "student=resnet20", *IMAGENET]
    command += ["data=npz", f"data.path={options.data}", f"teacher.checkpoint={options.teacher}"]
    command += ["generator=large", "batch_size=256", "precision=bf16", "steps=6000"]
    command += ["evaluations=6", "checkpoints=2", f"device={options.device}", f"run_dir={run}"]
    return Job("dfq", command, 240, [*TINY, "generator.channels=8"], run, ("data", "teacher"))


def training(options: argparse.Namespace) -> list[Job]:
    teacher, student = options.runs / "wrn", options.runs / "nayer"
    data = ["data=npz", f"data.path={options.data}", f"device={options.device}", "precision=bf16"]
    supervised = ["train.py", "method=scratch", "student=wrn_40_2", *data, "batch_size=512"]
    supervised += ["optimizer.lr=0.4", "steps=3000", f"source.augment={AUGMENT}"]
    supervised += ["evaluations=2", "checkpoints=2", f"run_dir={teacher}"]
    nayer = ["train.py", "experiment=cifar10_nayer", *data, "teacher=wrn_40_2", "student=wrn_16_1"]
    nayer += [f"teacher.checkpoint={teacher / 'student.safetensors'}", f"steps={options.steps}"]
    nayer += ["source.warmup=60", "source.streams.bank.capacity=60000"]
    nayer += ["evaluations=6", "checkpoints=2", f"run_dir={student}"]
    few = ["source.warmup=0", "synthesizer.iterations=1", "synthesizer.size=8"]
    few += [
        "source.streams.bank.capacity=64",
        "generator.channels=8",
        "synthesizer.variable.lifetime=0",
    ]
    return [
        Job("wrn", supervised, 180, TINY, teacher, ("data",)),
        Job("nayer", nayer, LIMITS["train"], [*TINY, *few], student, ("data",)),
    ]


PARTS = {"smoke": smoke, "train": training}


def run_all(jobs: list[Job], options: argparse.Namespace, end: float) -> int:
    """Run the jobs in order until the time is up; returns 1 if one failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    report: list[dict[str, Any]] = []
    for job in jobs:
        command = [*job.command, *(job.tiny if options.dry_run else [])]
        missing = [f"--{name}" for name in job.needs if getattr(options, name) is None]
        left = end - time.monotonic() - GRACE
        entry: dict[str, Any] = {"job": job.name, "command": " ".join(["python", *command])}
        if missing:
            entry["status"] = f"left out: needs {' and '.join(missing)}"
        elif left < LEAST:
            entry["status"] = "left out: no time left"
        else:
            most = left if options.dry_run else min(job.most, left)  # a CPU may be slow
            entry |= attempt(job, command, most, options)
        report.append(entry)
        print(f"{job.name:<20} {entry['status']}", flush=True)
        write_whole(options.out / f"{options.part}.json", json.dumps(report, indent=1) + "\n")
    return int(any(entry["status"].startswith("failed") for entry in report))


def attempt(
    job: Job, command: list[str], seconds: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Run one job for at most so many seconds; returns its entry in the report."""
    log = options.out / f"{job.name}.txt"
    began = time.monotonic()
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(options.runs),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children end with it
        )
        stopped = ends(process, seconds)
    status = "finished" if process.returncode == 0 else f"failed: exit code {process.returncode}"
    if stopped:
        status = f"stopped: {seconds:.0f} s were not enough"
    result = job.run and job.run / "result.json"
    if result and result.exists():
        shutil.copy(result, options.out / f"{job.name}.json")
    tail = log.read_text(errors="replace")[-TAIL:].splitlines()
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "tail": tail}


def ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the process and its children to end; returns whether they had to be stopped."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE / 2)
        return True
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(runs: Path) -> dict[str, str]:
    """This repository first on PYTHONPATH, then the folder of extra packages, if there is one."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    caches = {f"{name}_CACHE_DIR": str(runs / name.lower()) for name in ("TORCHINDUCTOR", "TRITON")}
    defaults = {"OMP_NUM_THREADS": "4", **caches}
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return defaults | os.environ | fixed | {"PYTHONDONTWRITEBYTECODE": "1"}


if __name__ == "__main__":
    sys.exit(main())
