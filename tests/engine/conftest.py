"""A trained teacher and tiny runs, in this process and in others."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.runtime import Runtime
from engine.config import compose
from engine.run import RunDirectory
from tests.engine.runs import TINY, Run


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty working directory, and pytest's own signal handlers afterwards."""
    monkeypatch.chdir(tmp_path)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a digits_cnn of width 8, trained for 60 steps."""
    folder = tmp_path_factory.mktemp("teacher")
    arguments = ["method=scratch", "student=digits_cnn", "student.model.width=8", "device=cpu"]
    run = Run(
        [*arguments, "steps=60", "evaluations=1", f"run_dir={folder / 'run'}"], folder / "log"
    )
    assert run.wait() == 0, run.output
    return folder / "run" / "student.safetensors"


@pytest.fixture
def tiny(teacher: Path) -> list[str]:
    """Overrides of a run that takes about a second."""
    return [*TINY, f"teacher.checkpoint={teacher}"]


@pytest.fixture
def runtime() -> Runtime:
    return Runtime("cpu")


@pytest.fixture
def directory(tmp_path: Path, runtime: Runtime) -> RunDirectory:
    """Of a run that has not begun."""
    return RunDirectory(compose([*TINY, f"run_dir={tmp_path / 'run'}"]), runtime)
