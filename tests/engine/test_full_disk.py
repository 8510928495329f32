"""A full disk while saving: one message, and what was there before is whole."""

import errno
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from engine.run import RunDirectory
from tests.engine.runs import Run, contents


@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left"), RuntimeError("writer")])
def test_a_failed_write_leaves_the_previous_checkpoint(
    kind: Exception, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.checkpoints.save(3, {"step": 3})
    before = contents(directory.path)

    def half(state: Any, file: Any) -> None:
        file.write(b"half")
        raise kind

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(ValueError, match=r"step 6 .*step-000000003, is intact") as caught:
        directory.checkpoints.save(6, {"step": 6})
    assert "same command again" in str(caught.value)
    assert contents(directory.path) == before


def limit_files(size: int) -> int:
    """No file of this process may grow beyond the size; gives the former limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    return soft


def test_a_disk_that_is_full(directory: RunDirectory) -> None:
    """The operating system itself refuses the bytes."""
    directory.checkpoints.save(3, {"step": 3})
    before = contents(directory.path)
    former = limit_files(4096)
    try:
        with pytest.raises(ValueError, match="could not save the checkpoint of step 6"):
            directory.checkpoints.save(6, {"x": torch.zeros(100_000)})
    finally:
        limit_files(former)
    assert contents(directory.path) == before
    directory.checkpoints.save(6, {"step": 6})


@pytest.mark.parametrize("size", [1_000, 4_000, 20_000, 60_000])
def test_a_run_on_a_disk_that_is_full(size: int, tiny: list[str], tmp_path: Path) -> None:
    """Whichever file is the first that does not fit: one message, and later the run goes on."""
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}", "evaluations=12", "checkpoints=1"]
    full = Run(arguments, tmp_path / "log", ("on_a_full_disk", size))
    assert full.wait() == 1, full.output
    assert "Traceback" not in full.output, full.output
    error = full.output[full.output.index("error:") :]
    assert len(error.splitlines()) <= 2, error
    assert str(tmp_path / "run") in error
    assert "the same command again" in error or size == 1_000
    again = Run(arguments, tmp_path / "log")
    assert again.wait() == 0, again.output


def test_a_picture_that_does_not_fit(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is written whole or not at all, as every other file."""
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "inputs.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    path = tmp_path / "run"
    assert train.main([*tiny, "steps=1", f"run_dir={path}"]) == 1
    assert f"cannot write {path / 'inputs.png'}: No space left" in capsys.readouterr().err
    assert not [p for p in path.iterdir() if p.name.startswith(("inputs", "result"))]
    monkeypatch.setattr(os, "replace", replace)
    assert train.main([*tiny, "steps=1", f"run_dir={path}"]) == 0
