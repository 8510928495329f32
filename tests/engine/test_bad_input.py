"""What a user can get wrong: a line or two, no traceback, and run directories as they were."""

import pickle
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import train
from core.runtime import Runtime
from engine.choices import groups
from engine.config import compose
from engine.run import RunDirectory
from generators.observer import WITHOUT_BATCHNORM
from models.checkpoint import load_weights
from tests.engine.runs import TINY, Run, checkpoint, contents

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Run the command beside a finished run; gives what it says, once it is known to be harmless.

    The other run is of the same configuration where ``run_dir`` is given.
    """

    def refused(*arguments: str) -> str:
        before = contents(tmp_path)
        folders = set(tmp_path.rglob("*"))
        capsys.readouterr()
        assert train.main([*TINY, *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.splitlines()) <= 2, error
        assert contents(tmp_path) == before
        assert set(tmp_path.rglob("*")) - folders <= {tmp_path / "runs"}
        return error

    return refused


def damaged(path: Path, teacher: Path, kind: str) -> Path:
    """A file that is no good checkpoint."""
    path = path / f"{kind}.safetensors"
    state, _ = load_weights(teacher)
    if kind == "truncated":
        path.write_bytes(teacher.read_bytes()[:-100])
    elif kind == "stub":
        path.write_bytes(teacher.read_bytes()[:5])
    elif kind == "text":
        path.write_text("these are not the weights that you are looking for")
    elif kind == "foreign":
        save_file({"embedding.weight": torch.zeros(3, 3)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Runtime("cpu")))
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "truncated_torch":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "unnormalised":
        save_file(state, path)
    elif kind == "wider":
        save_file({k: torch.cat([v, v]) if v.dim() else v for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "No such file"),
        ("truncated", "truncated"),
        ("stub", "truncated"),
        ("text", "is not a checkpoint"),
        ("foreign", "does not fit DigitsCNN: missing: stage1.0.weight"),
        ("pickle", "unpickling"),
        ("module", "unpickling"),
        ("truncated_torch", "truncated"),
        ("unnormalised", "teacher.mean=[...]"),
        ("wider", "of another shape"),
    ],
)
def test_checkpoints(kind: str, said: str, refused: Refused, teacher: Path, tmp_path: Path) -> None:
    path = damaged(tmp_path, teacher, kind)
    known = [] if kind == "unnormalised" else ["teacher.mean=[0.3]", "teacher.std=[0.4]"]
    error = refused(f"teacher.checkpoint={path}", *known)
    assert said in error
    assert path.name in error


def test_a_checkpoint_for_other_data(refused: Refused, teacher: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def npz(side: int, classes: int) -> str:
        path = tmp_path / f"{side}-{classes}.npz"
        arrays = {}
        for which in ("train", "test"):
            arrays[f"{which}_images"] = rng.integers(0, 255, (20, side, side), dtype=np.uint8)
            arrays[f"{which}_labels"] = np.arange(20) % classes
        np.savez(path, **arrays)
        return f"data.path={path}"

    common = ["data=npz", "data.size=null", "teacher=digits_cnn", "student=digits_cnn_small"]
    common += ["generator.channels=16", f"teacher.checkpoint={teacher}"]
    error = refused(*common, npz(12, 10))
    assert "1x8x8" in error
    assert "1x12x12" in error
    error = refused(*common, npz(8, 7))
    assert "10 classes" in error
    assert "7" in error
    wrong = refused(*common, npz(8, 10), "teacher.mean=[0.5,0.5]", "teacher.std=[1,1]")
    assert "1 channel" in wrong
    small = refused(*common, npz(8, 10), "student=lenet5_half", "~student.model.width")
    assert "8x8" in small


@pytest.mark.parametrize("kind", ["missing", "none", "text", "truncated", "keys"])
def test_unreadable_data(kind: str, refused: Refused, teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    if kind == "text":
        path.write_text("no archive")
    elif kind in ("truncated", "keys"):
        np.savez(path, train_images=np.zeros((50, 8, 8), np.uint8), train_labels=np.zeros(50, int))
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    given = "null" if kind == "none" else path
    error = refused("data=npz", f"data.path={given}", f"teacher.checkpoint={teacher}")
    assert "data.path" in error if kind in ("missing", "none") else "data.npz" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["source={_target_: data.source.RealSource}"], "this run is data-free"),
        (["source={_target_: data.source.RealSource}", "data.val_fraction=0.2"], "data-free"),
        (["method=scratch", "data_free=true"], "Use method=kd"),
        (["needs_teacher=false"], "need a teacher"),
        (["ema=1.5"], "decay"),
        (["optimizer.lr=-1"], "learning rate"),
        (["schedule.warmup=3"], "warmup is a fraction"),
        (["generator.output=tan"], "tan"),
        (["distiller.losses={}"], "at least one loss"),
        (["source.student_steps=0"], "at least 1"),
        (
            ["synthesis=null"],
            "needs observer, which this run does not have: see the key synthesis",
        ),
        (["batch_size=1000000000000"], "GiB, but this machine has"),
        (["student.model.width=100000000"], "GiB, but this machine has"),
        (["student.model.width=-4"], "student.model (models.digits.DigitsCNN) cannot be built"),
        (["student.model.width=0"], "has no weights in"),
        (["source={_target_: builtins.print}"], "gives a NoneType, where a Source is needed"),
        (["student.model={_target_: math.sqrt}"], "student.model (math.sqrt) cannot be built"),
        (["schedule={_target_: builtins.dict}"], "schedule (builtins.dict) gives a dict"),
        (
            ["synthesizer.optimizer.betas=[0.9,1.5]"],
            "synthesizer.optimizer (torch.optim.Adam): Invalid beta",
        ),
    ],
)
def test_settings_that_do_not_fit_together(
    arguments: list[str], said: str, refused: Refused, teacher: Path
) -> None:
    assert said in refused(f"teacher.checkpoint={teacher}", *arguments)


@pytest.mark.parametrize("method", ["dfq", "deep_inversion", "adi", "reverie"])
def test_a_teacher_without_batchnorm(method: str, refused: Refused, tmp_path: Path) -> None:
    from models.lenet import LeNet5

    save_file(LeNet5(1, 10).state_dict(), tmp_path / "lenet.safetensors")
    common = ["teacher=lenet5", "student=lenet5_half", "data.size=32", f"method={method}"]
    normalisation = ["teacher.mean=[0.1]", "teacher.std=[0.3]"]
    file = f"teacher.checkpoint={tmp_path / 'lenet.safetensors'}"
    error = refused(*common, *normalisation, file, "~teacher.model.width", "~student.model.width")
    assert "no BatchNorm" in error
    assert "dafl, zskt, dfad" in error


def test_the_methods_named_are_those_that_work_without_batchnorm() -> None:
    working = set()
    for name in groups()["method"]:
        config = compose([f"method={name}"])
        losses = [
            resolve_name(t.loss._target_)
            for t in (config.synthesis or {}).get("losses", {}).values()
        ]
        if losses and not any(loss.needs_statistics for loss in losses):  # not noise
            working.add(name)
    assert working == set(WITHOUT_BATCHNORM)


def test_cuda_without_cuda(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use device=cpu" in refused("device=cuda")


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, "method=dfq", f"run_dir={tmp_path / 'run'}", "log_every=1"]
    broken = Run(arguments, tmp_path / "log", ("poisoned", 14))
    assert broken.wait() == 1
    error = broken.output[broken.output.index("error:") :]
    assert "student/kd became nan at step 14" in error
    assert "checkpoint is kept" in error
    assert "Traceback" not in error
    state = checkpoint(tmp_path / "run")
    assert state["step"] == 12
    assert all(v.isfinite().all() for k, v in state["distiller"].items() if "extra" not in k)
    assert Run(arguments, tmp_path / "log").wait() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method=dfq", "distiller.losses.kd.weight=-1e39"], "student/kd became -inf at step 0"),
        (["method=dfq", "distiller.losses.kd.weight=1e39"], "student/kd became inf at step 0"),
        (["synthesis.losses.bn.weight=1e39"], "source/bn became inf at step 0"),
        (["method=kd", "optimizer.lr=1e38", "schedule.warmup=0.0"], "at step 1"),
        # the loss of the one step is finite, and what the step makes of the weights is not
        (["method=kd", "optimizer.lr=1e39", "schedule.warmup=0.0", "steps=1"], "after step 1"),
    ],
)
def test_no_checkpoint_where_there_never_was_a_good_one(
    arguments: list[str],
    said: str,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [f"teacher.checkpoint={teacher}", f"run_dir={tmp_path / 'run'}", "log_every=100"]
    assert train.main([*TINY, *given, *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) <= 2
    assert not list((tmp_path / "run").rglob("step-*"))
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_teachers_mistake_leaves_no_directory(refused: Refused, tmp_path: Path) -> None:
    """A data set that turns out to be unreadable only when the teacher is to be trained."""
    path = tmp_path / "data.npz"
    good = {"test_images": np.zeros((20, 8, 8), np.uint8), "test_labels": np.arange(20) % 10}
    bad = {"train_images": np.zeros((20, 8, 8), float), "train_labels": np.arange(20) % 10}
    np.savez(path, **good, **bad)
    common = ["data=npz", f"data.path={path}", "teacher=digits_cnn", "student=digits_cnn_small"]
    assert "uint8" in refused(*common, "data.size=8")
    config = compose([*TINY, *common, "data.size=8"])
    assert not RunDirectory(config, Runtime("cpu")).path.exists()
