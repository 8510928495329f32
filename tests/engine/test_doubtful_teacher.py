"""A teacher that hardly does better than guessing is said before the run, and loses nothing."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

import train
from engine.teacher import hardly_above
from models.checkpoint import load_weights
from tests.engine.runs import TINY, contents


@pytest.mark.parametrize(
    ("accuracy", "chance", "count", "doubtful"),
    [
        (0.10, 0.1, 10_000, True),
        (0.11, 0.1, 10_000, True),  # more than chance, and no teacher
        (0.02, 0.1, 10_000, True),  # another order of classes
        (0.25, 0.1, 10_000, False),
        (0.30, 0.1, 20, True),  # so many of 20 may be luck
        (0.35, 0.1, 20, False),
        (0.95, 0.95, 1000, True),  # always the class that most inputs have
        (1.0, 1.0, 1000, False),  # a split of one class tells nothing
        (0.0, 0.5, 1, False),  # nor does one input
        (0.5, 0.5, 1000, True),
        (0.01, 0.001, 50_000, True),
        (0.70, 0.001, 50_000, False),
        (0.0, 0.0, 100, True),
    ],
)
def test_what_is_hardly_above(accuracy: float, chance: float, count: int, doubtful: bool) -> None:
    assert hardly_above(accuracy, chance, count) is doubtful


@pytest.fixture
def shifted(teacher: Path, tmp_path: Path) -> Path:
    """A good teacher but for the order of its classes."""
    state, metadata = load_weights(teacher)
    for name in ("linear.weight", "linear.bias"):
        state[name] = state[name].roll(1, 0).contiguous()
    save_file(state, tmp_path / "shifted.safetensors", metadata)
    return tmp_path / "shifted.safetensors"


def test_warning_or_error(
    shifted: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*TINY, f"run_dir={tmp_path / 'run'}", "method=dafl"]
    doubtful = f"teacher.checkpoint={shifted}"
    assert train.main([*run, f"teacher.checkpoint={teacher}", "strict=true"]) == 0
    assert not capsys.readouterr().err
    before = contents(tmp_path)
    assert train.main([*run, doubtful, "strict=true", "overwrite=true"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the teacher is right on ")
    assert "in another order" in error
    assert "teacher.mean" in error
    assert contents(tmp_path) == before
    assert train.main([*run, doubtful, "overwrite=true"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: the teacher is right on ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("teacher.mean=[77.9]", "divide mean and std by 255"),
        ("teacher.weights=ema", "teacher.checkpoint=..., which is not set"),
    ],
)
def test_before_a_teacher_is_trained(
    argument: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, f"run_root={tmp_path / 'runs'}", argument]) == 1
    heard = capsys.readouterr()
    assert said in heard.err
    assert "training" not in heard.out
