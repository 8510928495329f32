"""Killed or stopped at random moments, a run of any kind ends with the same bytes."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.engine.runs import Run, contents, ranks
from tests.engine.test_resume import INVERSION, same_run

ROUNDS = ["synthesizer.iterations=2", "source.student_steps=4", "source.streams.bank.capacity=64"]
KINDS = {
    "reverie": ["method=reverie", "ema=0.99"],
    "fast_dfkd": ["method=fast_dfkd", "source.warmup=1", *ROUNDS],
    "deep_inversion": INVERSION,
    "kd": ["method=kd", "loss=crd"],
    "maze": ["method=maze"],
    "scratch": ["method=scratch", "student=vit_digits", "~student.model.width"],
}
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


def after(seconds: float, process: Run, number: int) -> int:
    """The exit code of a process that is sent a signal, unless it has ended by then."""
    process.process.join(seconds)
    if process.process.is_alive() and process.process.pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.process.pid, number)
    return process.wait()


def killed_at_random(arguments: list[str], folder: Path, moments: int, seed: int) -> None:
    """Interrupt a run at moments within the time that it takes, and hold it against a whole one."""
    draw, began = random.Random(seed), time.monotonic()
    whole = Run([*arguments, f"run_dir={folder / 'whole'}"], folder / "log")
    assert whole.wait() == 0, whole.output
    duration = time.monotonic() - began
    arguments = [*arguments, f"run_dir={folder / 'killed'}"]
    for _ in range(moments):
        moment, number = draw.uniform(0, duration), draw.choice(SIGNALS)
        process = Run(arguments, folder / "out")
        code = after(moment, process, number)
        print(f"signal {number} after {moment:.2f} s: code {code}")
        # it may come before there is a handler for it
        assert code in (0, 130, -number, 1 if number == signal.SIGINT else 0), process.output
    last = Run(arguments, folder / "out")
    assert last.wait() == 0, last.output
    check_same(folder)


def check_same(folder: Path) -> None:
    same_run(folder / "whole", folder / "killed", stopped=True)
    whole, killed = (contents(folder / name) for name in ("whole", "killed"))
    for name in ("student.safetensors", "inputs.png", "versions.json"):
        assert whole[name] == killed[name], name
    assert len(whole) <= len(killed)
    assert not [name for name in killed if name.endswith((".partial", ".next", ".kept"))]


@pytest.mark.parametrize("kind", ["kd"])
def test_killed_at_one_random_moment(kind: str, tiny: list[str], tmp_path: Path) -> None:
    killed_at_random([*tiny, *KINDS[kind]], tmp_path, 1, seed=time.time_ns())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(kind: str, tiny: list[str], tmp_path: Path) -> None:
    arguments = [a for a in tiny if not (kind == "scratch" and a.startswith("teacher."))]
    arguments = [a for a in arguments if not (kind == "scratch" and a.startswith("generator."))]
    killed_at_random([*arguments, *KINDS[kind]], tmp_path, 4, seed=time.time_ns())


def ended(processes: list[Run], victim: int) -> None:
    """One was killed; the others end by themselves, with a line that says why."""
    for rank, process in enumerate(processes):
        code = process.wait()
        assert code == (-signal.SIGKILL if rank == victim else 1), process.output
        if rank != victim:
            assert "Traceback" not in process.output, process.output
            assert "another process of this run has ended" in process.output


def test_one_of_two_ranks_killed(tiny: list[str], tmp_path: Path) -> None:
    """In the midst of a checkpoint, and when it has just got its name."""
    arguments = [*tiny, "method=kd"]
    for moment, victim in {("in_save", 0.5): 1, ("at_replace", "step-", False): 0}.items():
        chosen: list[tuple[object, ...]] = [(), ()]
        chosen[victim] = moment
        both = ranks([*arguments, f"run_dir={tmp_path / 'killed'}"], tmp_path, tuple(chosen))
        ended(both, victim)
    for name in ("whole", "killed"):
        for process in ranks([*arguments, f"run_dir={tmp_path / name}"], tmp_path):
            assert process.wait() == 0, process.output
    check_same(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reverie", "fast_dfkd"])
def test_a_rank_killed_at_random_moments(kind: str, tiny: list[str], tmp_path: Path) -> None:
    draw, began = random.Random(time.time_ns()), time.monotonic()
    arguments = [*tiny, *KINDS[kind]]
    for process in ranks([*arguments, f"run_dir={tmp_path / 'whole'}"], tmp_path):
        assert process.wait() == 0, process.output
    duration = time.monotonic() - began
    arguments.append(f"run_dir={tmp_path / 'killed'}")
    for _ in range(3):
        both = ranks(arguments, tmp_path)
        victim = draw.randrange(2)
        after(draw.uniform(0, duration), both[victim], signal.SIGKILL)
        # as torchrun does: before ranks have met, only that ends a rank that waits for the other
        after(20, both[1 - victim], signal.SIGTERM)
        for process in both:
            assert process.wait() in (0, 1, 130, -signal.SIGTERM, -signal.SIGKILL), process.output
            assert "Traceback" not in process.output, process.output
    for process in ranks(arguments, tmp_path):
        assert process.wait() == 0, process.output
    check_same(tmp_path)
