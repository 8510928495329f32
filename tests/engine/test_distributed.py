"""Several processes make one run: weights alike, noise not, statistics averaged, resume exact."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from core.runtime import Runtime
from models.checkpoint import load_weights
from tests.engine.runs import ROOT, TINY, checkpoint, contents, differing, events, ranks

# No BatchNorm, and every rank its own part of each real batch
PLAIN = ["method=scratch", "data.size=32", "student=lenet5_half", "~student.model.width"]
PLAIN += ["data.training.augment=[]", "schedule.warmup=0.0", "device=cpu", "steps=3"]
PLAIN += ["evaluations=1", "checkpoints=1"]


def finish(arguments: list[str], folder: Path) -> None:
    for process in ranks(arguments, folder):
        assert process.wait() == 0, process.output


def kinds(state: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Names of BatchNorm's statistics, and of all that is trained."""
    statistics = [k for k in state if k.endswith(("running_mean", "running_var"))]
    trained = [k for k, v in state.items() if k not in statistics and isinstance(v, torch.Tensor)]
    return statistics, trained


def test_torchrun_and_a_kill_of_both(tiny: list[str], tmp_path: Path) -> None:
    """The command of the README; and the same in processes that are killed on the way."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(ROOT / "train.py"), *tiny, f"run_dir={whole}"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("student accuracy") == 1
    check_whole(whole)
    arguments = [*tiny, f"run_dir={killed}"]
    for moment in [("at_step", 6), ("in_save", 0.5)]:
        for process in ranks(arguments, tmp_path, (moment, moment)):
            assert process.wait() == -signal.SIGKILL, process.output
    statistics, trained = kinds(checkpoint(killed)["distiller"])
    one, two = (checkpoint(killed, rank)["distiller"] for rank in (0, 1))
    assert checkpoint(killed)["step"] == 4  # before the first evaluation
    assert all(torch.equal(one[k], two[k]) for k in trained)
    assert not any(torch.equal(one[k], two[k]) for k in statistics)
    finish(arguments, tmp_path)
    for rank in (0, 1):
        assert not differing(checkpoint(whole, rank), checkpoint(killed, rank))
    assert events(whole) == events(killed)
    students = [load_weights(run / "student.safetensors") for run in (whole, killed)]
    assert not differing(students[0], students[1])


def check_whole(run: Path) -> None:
    one, two = checkpoint(run, 0), checkpoint(run, 1)
    assert one["step"] == two["step"] == 24
    assert not differing(one["distiller"], two["distiller"])  # evaluated last, so averaged too
    assert not differing(one["optimizer"], two["optimizer"])
    generators = [state["source"]["synthesizer"]["generator"] for state in (one, two)]
    for name in kinds(generators[0])[1]:
        assert torch.equal(generators[0][name], generators[1][name]), name
    assert not any(torch.equal(a, b) for a in one["recent"] for b in two["recent"])
    files = contents(run)
    assert sum(name.endswith("result.json") for name in files) == 1
    assert sum("tfevents" in name for name in files) == 1
    cost = json.loads(files["result.json"])["cost"]
    # an update for every six steps, whose inputs come back with their answers
    assert cost["images_synthesized"] == cost["teacher_queries"] == 2 * 24 // 6 * 16
    assert max(events(run).values()) == 1


def test_ranks_share_what_rounds_leave_and_not_their_images(
    tiny: list[str], tmp_path: Path
) -> None:
    """A meta-learned generator, one of whose layers is drawn anew on the way."""
    rounds = ["method=fast_dfkd", "synthesizer.iterations=2", "source.student_steps=2", "steps=8"]
    rounds += ["source.warmup=1", "synthesizer.variable.reset_round=3", "checkpoints=1"]
    finish([*tiny, *rounds, "evaluations=1", f"run_dir={tmp_path / 'run'}"], tmp_path)
    one, two = (checkpoint(tmp_path / "run", rank)["source"] for rank in (0, 1))
    ours, theirs = (state["synthesizer"]["variable"] for state in (one, two))
    for name in kinds(ours)[1]:
        assert torch.equal(ours[name], theirs[name]), name
    banks = (state["streams"]["bank"]["bank"]["images"] for state in (one, two))
    assert not torch.equal(*banks)


def test_ranks_agree_on_the_steps_of_a_budget(teacher: Path, tmp_path: Path) -> None:
    """And on the inputs that they measure on, as there are no data."""
    given = [a for a in TINY if not a.startswith("steps=")]
    given += ["data=none", "teacher=digits_cnn", "student=digits_cnn_small", "generator=small"]
    given += [f"teacher.checkpoint={teacher}", "budget=3s", "probe.size=16"]
    given += ["probe.methods={dafl: ['steps=2'], dfad: ['steps=2']}"]
    finish([*given, f"run_dir={tmp_path / 'run'}", f"run_root={tmp_path}"], tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    steps = [checkpoint(tmp_path / "run", rank)["step"] for rank in (0, 1)]
    assert steps == [result["cost"]["steps"]] * 2
    assert f"\nsteps: {steps[0]}\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert steps[0] > 1
    assert result["measured_on"]["inputs"] == 32


def test_two_ranks_are_one_process_with_both_batches(tmp_path: Path) -> None:
    finish([*PLAIN, "batch_size=8", f"run_dir={tmp_path / 'two'}"], tmp_path)
    (one,) = ranks([*PLAIN, "batch_size=16", f"run_dir={tmp_path / 'one'}"], tmp_path, ((),))
    assert one.wait() == 0, one.output
    a, b = (load_weights(tmp_path / n / "student.safetensors")[0] for n in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    assert results[0]["student"]["accuracy"] == results[1]["student"]["accuracy"]
    assert results[1]["cost"]["real_training_inputs_read"] == 3 * 16


def test_statistics_are_averaged_before_evaluation(tmp_path: Path) -> None:
    """A checkpoint comes after the evaluation of its step, or before one that is yet to come."""
    common = [*TINY, "method=scratch", "steps=1", "checkpoints=1"]
    for count in (0, 1):
        run = [f"evaluations={count}", f"run_dir={tmp_path / str(count)}"]
        finish([*common, *run], tmp_path)
    before = [checkpoint(tmp_path / "0", rank)["distiller"] for rank in (0, 1)]
    after = [checkpoint(tmp_path / "1", rank)["distiller"] for rank in (0, 1)]
    statistics, _ = kinds(before[0])
    assert statistics
    for name in statistics:
        mean = (before[0][name] + before[1][name]) / 2
        assert not torch.equal(before[0][name], before[1][name])
        for state in after:
            torch.testing.assert_close(state[name], mean)
    saved, _ = load_weights(tmp_path / "0" / "student.safetensors")
    for name, value in saved.items():
        assert torch.equal(value, after[0][f"student.module.{name}"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_both(rank: int, tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}"]
    moments = [(), ()]
    moments[rank] = ("at_step", 3, signal.SIGTERM)  # type: ignore[call-overload]
    for process in ranks(arguments, tmp_path, tuple(moments)):
        assert process.wait() == 130, process.output
        assert "stopped at step 11 of 24" in process.output
    assert [checkpoint(tmp_path / "run", r)["step"] for r in (0, 1)] == [11, 11]


def test_what_goes_wrong_on_one_rank_ends_both(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}"]
    both = ranks(arguments, tmp_path, ((), ("poisoned", 6)))
    assert [process.wait() for process in both] == [1, 1]
    assert "became nan at step 6" in both[1].output
    assert checkpoint(tmp_path / "run")["step"] == 4
    before = contents(tmp_path / "run")
    refused = ranks([*arguments, "seed=1"], tmp_path)
    assert [process.wait() for process in refused] == [1, 1]
    assert "changed: seed" in refused[0].output
    assert "Traceback" not in refused[1].output
    (alone,) = ranks(arguments, tmp_path, ((),))
    assert alone.wait() == 1
    assert "use --nproc-per-node=2" in alone.output
    assert contents(tmp_path / "run") == before


def test_ranks_ask_each_other_about_a_stop_in_every_tenth_iteration_only() -> None:
    class Counted(Runtime):
        asked = 0

        def any(self, flag: bool) -> bool:
            self.asked += 1
            return flag

    runtime = Counted(device="cpu")
    runtime.stop_requested = True
    assert all(runtime.asked_to_stop(i) for i in range(20))
    runtime.world_size, runtime.asked = 2, 0
    assert [i for i in range(20) if runtime.asked_to_stop(i)] == [0, 10]
    assert runtime.asked == 2


@pytest.mark.slow
def test_more_ranks_than_inputs(tmp_path: Path) -> None:
    """Ranks without a test input add nothing to the evaluation; none may be without a batch."""
    draw = np.random.default_rng(0)
    arrays = {
        f"{split}_{kind}": array
        for split, size in (("train", 4), ("test", 2))
        for kind, array in (
            ("images", draw.integers(0, 256, (size, 8, 8), dtype=np.uint8)),
            ("labels", np.arange(size) % 2),
        )
    }
    np.savez(tmp_path / "few.npz", **arrays)
    data = ["method=scratch", "data=npz", f"data.path={tmp_path / 'few.npz'}", "device=cpu"]
    data += ["student=digits_cnn_small", "steps=2", "batch_size=4", "evaluations=1"]
    arguments = [*data, f"run_dir={tmp_path / 'run'}"]
    for process in ranks(arguments, tmp_path, ((), (), ())):
        assert process.wait() == 0, process.output
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["student"]["accuracy"] in (0, 0.5, 1)
    arguments[-1] = f"run_dir={tmp_path / 'more'}"
    for process in ranks(arguments, tmp_path, ((),) * 5):
        assert process.wait() == 1
        assert "4 training inputs cannot fill batches of 4 on 5 process(es)" in process.output
        assert "Traceback" not in process.output
    assert not (tmp_path / "more").exists()
