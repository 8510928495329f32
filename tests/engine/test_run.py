"""A run directory belongs to one configuration and one process; checkpoints are whole or absent."""

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import train
from core.runtime import Runtime, Stopped
from engine.config import compose
from engine.run import RunDirectory
from engine.teacher import teacher_config
from tests.engine.runs import TINY, Run, contents


def path_of(*overrides: str) -> Path:
    return RunDirectory(compose([*TINY, *overrides]), Runtime("cpu")).path


def test_the_path_is_a_function_of_the_configuration() -> None:
    path = path_of()
    assert path == path_of()
    assert path.parent == Path("runs")
    assert path.name.startswith("digits-reverie-digits_cnn-width-8-digits_cnn_small-width-4-seed0-")
    for override in ("device=auto", "log_every=7", "checkpoints=2", "overwrite=true"):
        assert path_of(override) == path, override
    others = ["seed=1", "steps=9", "optimizer.lr=0.5", "method=dafl", "precision=bf16", "ema=0.9"]
    assert len({path, *map(path_of, others)}) == 1 + len(others)
    assert path_of("run_root=elsewhere") == Path("elsewhere") / path.name
    assert path_of("run_dir=here", "run_root=elsewhere") == Path("here")


def test_where_the_data_lies_is_no_part_of_the_configuration(tmp_path: Path) -> None:
    mnist = ["data=mnist", "~teacher.model.width", "~student.model.width"]
    one, two = (compose([*TINY, *mnist, f"data.root={root}"]) for root in ("one", "two"))
    runtime = Runtime("cpu")
    assert RunDirectory(one, runtime).path == RunDirectory(two, runtime).path
    assert len({RunDirectory(teacher_config(c), runtime).path for c in (one, two)}) == 1
    npz = "data.dataset={_target_: data.files.npz, path: '${data.path}'}"
    assert path_of(npz, "data.path=one") != path_of(npz, "data.path=two")  # that is the data
    begun(tmp_path / "run", "data.root=one")
    begun(tmp_path / "run", "data.root=two")


@pytest.mark.parametrize(
    ("overrides", "name", "folder"),
    [
        (
            ["student=wrn", "student.model.depth=22", "student.model.width=2"],
            "wrn(depth=22, width=2)",
            "wrn-depth-22-width-2",
        ),
        (["student=wrn_40_2"], "wrn_40_2", "wrn_40_2"),
        (
            ["student=timm", "student.model.name=resnet18", "student.model.act_layer=gelu"],
            "timm(name=resnet18, act_layer=gelu)",
            "timm-name-resnet18-act_layer-gelu",
        ),
        (["student=resnet20", "student.model.depth=14"], "resnet20(depth=14)", "resnet20-depth-14"),
        (["student=lenet5_half", "~student.model.width"], "lenet5_half(~width)", "lenet5_half"),
        (
            ["student=simkd", "student.model.backbone.width=8"],
            "simkd(backbone.width=8)",
            "simkd-backbone.width-8",
        ),
        (["experiment=cifar10_maze"], "wrn_22_2", "wrn_22_2"),
        (["student=vit_digits"], "vit_digits", "vit_digits"),
    ],
)
def test_a_network_is_named_with_what_was_changed(
    overrides: list[str], name: str, folder: str
) -> None:
    config = compose(overrides)
    assert config.choices.student == name
    assert f"-{folder}-" in RunDirectory(config, Runtime("cpu")).path.name
    assert teacher_config(config).choices.student == config.choices.teacher


def begun(path: Path, *overrides: str) -> RunDirectory:
    directory = RunDirectory(compose([*TINY, f"run_dir={path}", *overrides]), Runtime("cpu"))
    with directory.claimed():
        directory.begin()
    return directory


def test_another_configuration_is_refused_by_its_keys(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    before = contents(tmp_path)
    begun(tmp_path / "run", "log_every=5", "checkpoints=3")
    with pytest.raises(ValueError, match=r"changed: seed, optimizer\.lr\. .*overwrite=true"):
        begun(tmp_path / "run", "seed=1", "optimizer.lr=0.7")
    with pytest.raises(
        ValueError, match=r"teacher\.model\.width, .*synthesizer\._target_, .*choices\.method, "
    ):
        begun(tmp_path / "run", "method=deep_inversion", "teacher.model.width=9")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("last", ["394706e591", "85c4f97"])
def test_a_run_of_an_earlier_version_is_refused(tmp_path: Path, last: str) -> None:
    begun(tmp_path / "run")
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    if last == "394706e591":
        config.distiller.terms = config.distiller.pop("losses")
    else:
        config.source = {**config.pop("synthesizer"), **config.source}
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"earlier version; the last commit .* is {last}"):
        begun(tmp_path / "run")
    assert contents(tmp_path) == before


def test_a_folder_of_other_files_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    for override in ("overwrite=false", "overwrite=true"):
        with pytest.raises(ValueError, match=r"not a run directory: give another run_dir"):
            begun(tmp_path / "run", override)
    assert contents(tmp_path) == {"run/thesis.txt": b"mine"}


def test_nothing_is_left_where_nothing_began(directory: RunDirectory) -> None:
    with directory.claimed():
        pass
    assert not directory.path.exists()
    directory.path.mkdir()
    with directory.claimed():
        pass
    assert directory.path.exists()  # it was not ours to remove


def test_folders_above_that_were_made_for_it_go_too(tiny: list[str], tmp_path: Path) -> None:
    def claim(where: Path) -> None:
        config = compose([*tiny, f"run_dir={where}"])
        with pytest.raises(KeyError), RunDirectory(config, Runtime("cpu")).claimed():
            raise KeyError

    claim(tmp_path / "a" / "b" / "run")
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    claim(tmp_path / "a" / "b" / "run")
    assert (tmp_path / "a").exists()  # it was there
    assert not any((tmp_path / "a").iterdir())


def test_overwrite_starts_again(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}", "steps=4"]
    assert train.main(arguments) == 0
    first = contents(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert train.main(arguments) == 0  # finished: the result is shown, nothing runs
    assert contents(tmp_path / "run") == first | {"notes.txt": b"mine"}
    assert train.main([*arguments, "seed=1", "overwrite=true"]) == 0
    second = contents(tmp_path / "run")
    assert second.pop("notes.txt") == b"mine"
    assert {k for k in second if "tfevents" in k}.isdisjoint(first)
    assert len(second) == len(first)
    assert json.loads(second["result.json"])["seed"] == 1
    assert b"seed: 1" in second["config.yaml"]
    assert train.main([*arguments, "seed=1", "overwrite=true"]) == 0  # again, from the start
    assert contents(tmp_path / "run")["result.json"] != second["result.json"]


def test_overwrite_takes_nothing_before_the_new_run_stands(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}", "steps=2"]
    assert train.main(arguments) == 0
    before = contents(tmp_path / "run")
    for mistake in ("teacher.checkpoint=missing.pt", "student.model.width=0", "ema=2.0"):
        assert train.main([*arguments, "overwrite=true", mistake]) == 1
        assert contents(tmp_path / "run") == before, mistake
    assert capsys.readouterr().err.count("error:") == 3


def test_two_processes_in_one_directory(directory: RunDirectory, tmp_path: Path) -> None:
    """The lock is held by another process, and goes with it."""
    arguments = [*TINY, f"run_dir={directory.path}"]
    with directory.claimed():
        directory.begin()
        before = contents(directory.path)
        second = Run(arguments, tmp_path / "log")
        assert second.wait() == 1
        assert "another process is using the run directory" in second.output
        assert len(second.output.splitlines()) == 1
        assert contents(directory.path) == before
    assert Run([*arguments, "data.training.steps=2"], tmp_path / "log").wait() == 1
    other = [f"run_dir={directory.path}", "teacher.checkpoint=missing.pt", "overwrite=true"]
    third = Run([*TINY, *other], tmp_path / "log")
    assert third.wait() == 1
    assert "missing.pt" in third.output


@pytest.mark.parametrize("stop", [False, True])
def test_waiting_for_another_process(
    stop: bool,
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rank 0 looks now and then and tells the others, whose patience is limited, each time."""
    directory.path.mkdir()
    held = os.open(directory.path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    looks, heard = [], []

    def sleep(seconds: float) -> None:
        looks.append(len(heard))
        if len(looks) == 3:
            directory.runtime.stop_requested = stop
            if not stop:
                os.close(held)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(directory.runtime, "any", lambda flag: heard.append(flag) or flag)
    directory.wait = True
    if stop:
        with pytest.raises(Stopped, match="another process works in"), directory.claimed():
            pass
        os.close(held)
    else:
        with directory.claimed():
            assert directory.path.is_dir()
    assert len(looks) == 3
    assert looks == sorted(set(looks))
    assert capsys.readouterr().out.count("waiting for another process") == 1


def test_a_lock_on_a_directory_removed_meanwhile_is_none(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, which found nothing to do, removes the directory just before our lock."""
    calls = []

    def flock(handle: int, flags: int) -> None:
        if not calls:
            directory.path.rmdir()
        calls.append(flags)

    monkeypatch.setattr(fcntl, "flock", flock)
    with directory.claimed():
        assert directory.path.is_dir()
    assert len(calls) == 2


def test_checkpoints_replace_one_another(directory: RunDirectory) -> None:
    assert directory.load() is None
    for step in (3, 999_999_999):
        directory.checkpoints.save(step, {"step": step, "distiller": {"x": torch.arange(3)}})
        assert [p.name for p in directory.checkpoints.whole()] == [f"step-{step:09d}"]
        state = directory.load()
        assert state is not None
        assert state["step"] == step
    # the same step is the same state: it stays
    directory.checkpoints.save(999_999_999, {"step": -1, "distiller": {}})
    assert [p.name for p in (directory.path / "checkpoints").iterdir()] == ["step-999999999"]
    state = directory.load()
    assert state is not None
    assert state["step"] == 999_999_999


def test_what_a_kill_leaves_is_no_checkpoint(directory: RunDirectory) -> None:
    directory.checkpoints.save(3, {"step": 3, "distiller": {}})
    folder = directory.path / "checkpoints"
    for name in ("partial-000000006", "step-000000009"):  # half written; half removed
        (folder / name).mkdir()
    (folder / "partial-000000006" / "rank0.pt").write_bytes(b"half")
    state = directory.load()
    assert state is not None
    assert state["step"] == 3
    assert not (folder / "partial-000000006").exists()


def test_another_number_of_processes_is_refused(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory.runtime, "any", bool)
    directory.checkpoints.save(3, {"step": 3, "distiller": {}})
    before = contents(directory.path)
    directory.runtime.world_size = 2
    with pytest.raises(ValueError, match=r"1 process\(es\), not 2: use --nproc-per-node=1"):
        directory.load()
    assert contents(directory.path) == before


def test_a_path_that_cannot_be_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert train.main([*TINY, f"run_dir={path}"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["file"]
