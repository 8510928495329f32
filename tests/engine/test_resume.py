"""A run that is killed at any moment continues to the same bits as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.checkpoint import load_weights
from tests.engine.runs import (
    KINDS,
    ROOT,
    TINY,
    Run,
    card,
    checkpoint,
    differing,
    events,
    lines,
    scalars,
)

INVERSION = ["method=deep_inversion", "synthesizer.iterations=3", "synthesizer.size=16"]
INVERSION += ["source.student_steps=6", "source.streams.bank.capacity=40"]
# Draws from the global random state, as generators of vectors and texts do.
DROPOUT = ["method=kd", "student=vit_digits", "~student.model.width", "student.model.depth=1"]
DROPOUT += ["student.model.embed_dim=16", "student.model.proj_drop_rate=0.3"]
# One after the other in one run directory: each process continues where the one before died.
KILLS = {
    "reverie": (
        ["method=reverie", "ema=0.99", "clip=5.0"],
        [
            ("at_replace", "config.yaml", True),  # the directory is claimed, and holds a stub
            ("at_replace", "config.yaml", False),
            ("at_step", 2),  # before there is any checkpoint
            ("in_save", 0.5),  # the first
            ("at_replace", "step-", True),  # whole, but not yet in place
            ("at_step", 6),  # between two checkpoints
            ("in_save", 0.9, 2),  # of step 8, after that of step 4 of this very process
            ("at_replace", "step-", False),  # two are in place
            ("at_step", 15),
            ("at_replace", "student.safetensors", False),
            ("at_replace", "result.json", True),
        ],
    ),
    "deep_inversion": (
        INVERSION,
        [("in_inversion", 2), ("at_step", 7), ("in_inversion", 5), ("in_save", 0.5)],
    ),
    "kd": (["method=kd"], [("at_step", 10), ("in_save", 0.5)]),
    "dropout": (DROPOUT, [("at_step", 10), ("at_step", 18)]),
}


def same_run(a: Path, b: Path, stopped: bool = False) -> None:
    """Student, source, optimizers, metrics and TensorBoard of two run directories agree.

    One that was stopped has logged at that step too.
    """
    assert not differing(checkpoint(a), checkpoint(b))
    students = [load_weights(run / "student.safetensors") for run in (a, b)]
    assert not differing(students[0], students[1])
    one, two = (json.loads((run / "result.json").read_text()) for run in (a, b))
    for key in ("teacher", "student", "synthesized"):
        assert one.get(key) == two.get(key)
    counts = ("steps", "images_synthesized", "teacher_queries", "real_training_inputs_read")
    assert [one["cost"][k] for k in counts] == [two["cost"][k] for k in counts]
    found, wanted = events(b), events(a)
    assert max(found.values()) == 1, [k for k, n in found.items() if n > 1]
    assert not wanted - found
    series = [{k: v for k, v in lines(run).items() if k[0].startswith(KINDS)} for run in (a, b)]
    assert series[0].keys() <= series[1].keys()
    assert card(a) == card(b)
    if not stopped:
        assert not found - wanted
        assert scalars(a) == scalars(b)
        assert series[0] == series[1]


@pytest.mark.parametrize("method", KILLS)
def test_killed_again_and_again(method: str, tiny: list[str], tmp_path: Path) -> None:
    settings, moments = KILLS[method]
    arguments = [*tiny, *settings]
    whole = Run([*arguments, f"run_dir={tmp_path / 'whole'}"], tmp_path / "log")
    for moment in moments:
        killed = Run([*arguments, f"run_dir={tmp_path / 'killed'}"], tmp_path / "out", moment)
        assert killed.wait() == -signal.SIGKILL, f"{moment}: {killed.output}"
    last = Run([*arguments, f"run_dir={tmp_path / 'killed'}"], tmp_path / "out")
    assert last.wait() == 0, last.output
    assert "resumed at step" in last.output
    assert whole.wait() == 0, whole.output
    same_run(tmp_path / "whole", tmp_path / "killed")
    assert len(list((tmp_path / "killed" / "checkpoints").iterdir())) == 1


def test_with_the_teacher_trained_on_the_way(tmp_path: Path) -> None:
    """Killed while the teacher is trained, and after it but before the student's checkpoint."""
    arguments = [*TINY, "data.training.steps=24", "seed=3"]
    whole = Run([*arguments, f"run_root={tmp_path / 'whole'}"], tmp_path / "log")
    arguments.append(f"run_root={tmp_path / 'killed'}")
    for moment in [("at_step", 9, signal.SIGKILL, 1, "scratch"), ("at_step", 2, 9, 1, "reverie")]:
        killed = Run(arguments, tmp_path / "out", moment)
        assert killed.wait() == -signal.SIGKILL, killed.output
    last = Run(arguments, tmp_path / "out")
    assert last.wait() == 0, last.output
    assert "teacher: trained earlier" in last.output
    assert whole.wait() == 0, whole.output
    assert "teacher: trained for this run" in whole.output
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert len(names) == 2
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == names
    for name in names:
        same_run(tmp_path / "whole" / name, tmp_path / "killed" / name)


def test_the_command_itself_killed_from_outside(tiny: list[str], tmp_path: Path) -> None:
    """``kill -9`` of ``python train.py`` when a checkpoint appears, and the same command again."""
    arguments = [*tiny, "steps=60", "checkpoints=30", f"run_dir={tmp_path / 'killed'}"]
    whole = Run([*arguments[:-1], f"run_dir={tmp_path / 'whole'}"], tmp_path / "log")
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums depend on how threads share them
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    folder = tmp_path / "killed"
    while not list(folder.glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    assert whole.wait() == 0, whole.output
    same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues(
    number: signal.Signals, tiny: list[str], tmp_path: Path
) -> None:
    settings = INVERSION if number is signal.SIGTERM else []
    arguments = [*tiny, *settings, f"run_dir={tmp_path / 'stopped'}"]
    whole = Run([*arguments[:-1], f"run_dir={tmp_path / 'whole'}"], tmp_path / "log")
    first = Run(arguments, tmp_path / "out", ("at_step", 6, number))
    assert first.wait() == 130
    assert "stopping after this step" in first.output
    assert "stopped at step 7 of 24, and saved in" in first.output
    assert "the same command continues it" in first.output
    assert "Traceback" not in first.output
    assert checkpoint(tmp_path / "stopped")["step"] == 7
    twice = Run(arguments, tmp_path / "out", ("at_step", 9, number, 2))
    assert twice.wait() == 128 + number
    assert checkpoint(tmp_path / "stopped")["step"] == 8  # at once: that of step 9 was not saved
    last = Run(arguments, tmp_path / "out")
    assert last.wait() == 0, last.output
    assert whole.wait() == 0, whole.output
    same_run(tmp_path / "whole", tmp_path / "stopped", stopped=True)


def test_a_signal_within_a_round_of_inversion_repeats_the_round(
    tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, *INVERSION, f"run_dir={tmp_path / 'stopped'}"]
    whole = Run([*arguments[:-1], f"run_dir={tmp_path / 'whole'}"], tmp_path / "log")
    # the third round, of three iterations, begins before step 12
    first = Run(arguments, tmp_path / "out", ("in_inversion", 8, signal.SIGINT))
    assert first.wait() == 130, first.output
    assert "stopped at step 12 of 24" in first.output
    last = Run(arguments, tmp_path / "out")
    assert last.wait() == 0, last.output
    assert whole.wait() == 0, whole.output
    same_run(tmp_path / "whole", tmp_path / "stopped")
