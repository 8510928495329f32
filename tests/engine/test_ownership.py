"""What overwrite=true may take away, and when: files that we wrote, after the first step."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

import train
from engine.run import RunDirectory
from engine.train import Training
from tests.engine.runs import Run, contents, events


@pytest.fixture
def finished(tiny: list[str], tmp_path: Path) -> tuple[list[str], Path]:
    """The command of a run, and its directory."""
    arguments = [*tiny, "method=kd", "steps=2", "log_every=1", f"run_dir={tmp_path / 'run'}"]
    assert train.main(arguments) == 0
    return arguments, tmp_path / "run"


def put_foreign(run: Path) -> dict[str, bytes]:
    """Files of other programs among those of a run."""
    step = run / "checkpoints" / "step-000000002"
    files = [run / "notes.txt", run / "sub" / "result.json", run / "model.safetensors"]
    files += [run / "config.yaml.bak", run / "download.partial"]
    files += [
        run / "checkpoints" / name for name in ("epoch100.ckpt", "step-7.pt", "best/rank0.pt")
    ]
    files += [run / "checkpoints" / "partial-mine" / "rank0.pt", step / "notes.txt"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"precious {file.name}")
    with SummaryWriter(str(run)) as writer:
        writer.add_scalar("theirs", 1.0, 1)
    foreign = [*files, *(p for p in run.glob("events.*") if not p.name.endswith(".reverie"))]
    return {str(p.relative_to(run)): p.read_bytes() for p in foreign}


def test_foreign_files_within_a_run_stay(finished: tuple[list[str], Path]) -> None:
    arguments, run = finished
    before = contents(run)
    foreign = put_foreign(run)
    assert len(foreign) == 11
    (run / "result.json").unlink()
    assert train.main(arguments) == 0  # goes on
    assert contents(run).items() >= foreign.items()
    assert train.main([*arguments, "seed=1", "overwrite=true"]) == 0
    after = contents(run)
    assert after.items() >= foreign.items()
    old = {name for name in before if "tfevents" in name}
    assert old.isdisjoint(after)
    assert json.loads(after["result.json"])["seed"] == 1
    assert len(after) == len(before) + len(foreign)
    assert max(n for (tag, _), n in events(run).items() if tag != "theirs") == 1


@pytest.mark.parametrize(
    "config",
    [
        "model: mine\n",
        "choices: {data: a, method: b, student: c}\nseed: 1\nsteps: 3\n",  # similar keys
        None,  # a copy of a run's
    ],
)
def test_a_folder_of_another_program_is_refused(
    config: str | None, directory: RunDirectory, tmp_path: Path
) -> None:
    with directory.claimed():
        directory.begin()
    copied = (directory.path / "config.yaml").read_text()
    shutil.rmtree(directory.path)
    put_foreign(directory.path)
    (directory.path / "config.yaml").write_text(config or copied)
    for name in ("student.safetensors", "result.json", "inputs.png"):
        (directory.path / name).write_text("{}")
    (directory.path / "versions.json").write_text('{"torch": "2"}')
    before = contents(directory.path)
    for directory.overwrite in (False, True):
        with pytest.raises(ValueError, match=r"is not a run directory.*versions|config") as caught:
            directory._check_owner()
        assert "\n" not in str(caught.value)
    assert contents(directory.path) == before


def test_a_student_of_somebody_else_is_kept(directory: RunDirectory) -> None:
    for directory.overwrite in (False, True):
        with directory.claimed():
            directory.begin()
        (directory.path / "student.safetensors").write_text("mine")
    directory.overwrite = True
    (directory.path / "result.json").write_text('{"acc": 1}')
    (directory.path / "metrics.jsonl").write_text('{"loss": 1}\n')
    (directory.path / "inputs.png").write_text("a picture")
    (directory.path / "inputs.txt").write_text("my inputs")
    (directory.path / "inputs.wav").write_text("my voice")
    with directory.claimed():
        directory.begin()
    found = contents(directory.path)
    assert found["metrics.jsonl.kept"] == b'{"loss": 1}\n'
    assert found["inputs.png.kept"] == b"a picture"
    assert found["inputs.txt.kept"] == b"my inputs"
    assert found["inputs.wav.kept"] == b"my voice"
    assert found["student.safetensors.kept"] == found["student.safetensors.kept1"] == b"mine"
    assert found["result.json.kept"] == b'{"acc": 1}'


@pytest.mark.parametrize("name", ["student.safetensors", "result.json", "checkpoints"])
def test_what_stands_in_the_way_is_said_before_a_run(name: str, directory: RunDirectory) -> None:
    with directory.claimed():
        directory.begin()
    path = directory.path / name
    path.write_text("mine") if name == "checkpoints" else path.mkdir()
    for directory.overwrite in (False, True):
        with pytest.raises(ValueError, match=f"{name} is .*folder, .*move it away"):
            directory._check_owner()


def test_a_file_or_a_link_to_nothing_is_no_run_directory(
    directory: RunDirectory, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "file/below"):
        directory.path = tmp_path / name
        with pytest.raises(ValueError, match="cannot be a run directory"), directory.claimed():
            pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("mistake", ["a step that fails", "weights", "stop"])
def test_nothing_gives_way_before_the_first_step(
    mistake: str, finished: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, run = finished
    before = contents(run)
    learn = Training._learn

    def wrong(self: Training, *args: object) -> None:
        if mistake == "stop":
            self.runtime.stop_requested = True
            self._stop(0)
        if mistake == "a step that fails":
            raise ValueError("taps")
        learn(self, *args)  # type: ignore[arg-type]
        next(self.parts.student.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(Training, "_learn", wrong)
    code = 130 if mistake == "stop" else 1
    for seed in (0, 1):
        assert train.main([*arguments, "overwrite=true", f"seed={seed}"]) == code
        assert contents(run) == before
    monkeypatch.setattr(Training, "_learn", learn)
    assert train.main(arguments) == 0
    assert contents(run) == before


MOMENTS = [
    ("config.yaml.next", True, "old"),
    ("config.yaml.next", False, "new"),
    ("versions.json", True, "new"),
    ("config.yaml", False, "new"),
]


@pytest.mark.parametrize(("name", "early", "which"), MOMENTS)
def test_killed_while_the_old_run_gives_way(
    name: str, early: bool, which: str, finished: tuple[list[str], Path], tmp_path: Path
) -> None:
    """Either the old run is there, as it was, or the new one is."""
    arguments, run = finished
    before = contents(run)
    new = [*arguments, "seed=1"]
    killed = Run([*new, "overwrite=true"], tmp_path / "log", ("at_replace", f"/{name}", early))
    assert killed.wait() == -signal.SIGKILL, killed.output
    if which == "old":
        assert contents(run).items() >= before.items()
        assert train.main(arguments) == 0
        assert contents(run) == before
    else:
        assert train.main(arguments) == 1  # another configuration, whatever stage the kill was at
        assert not {"result.json", "student.safetensors"} & contents(run).keys()
        assert train.main(new) == 0
        after = contents(run)
        assert json.loads(after["result.json"])["seed"] == 1
        assert len(after) == len(before)
    assert not [p for p in contents(run) if p.endswith((".next", ".partial"))]


def test_a_run_of_an_earlier_version(finished: tuple[list[str], Path]) -> None:
    """Its event files had no mark, and its checkpoint no number of ranks."""
    arguments, run = finished
    for path in run.glob("events.*"):
        path.unlink()
    for tag in ("speed/images_per_second", "theirs"):
        with SummaryWriter(str(run)) as writer:
            writer.add_scalar(tag, 1.0, 1)
    assert train.main([*arguments, "overwrite=true"]) == 0
    assert len(list(run.glob("events.*"))) == 2
    assert ("theirs", 1) in events(run)
