"""Files of a run that a disk or another program has damaged: named in a line, and left alone."""

from typing import Any

import pytest
import torch

from engine.run import RunDirectory
from tests.engine.runs import contents


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a: [1\n"),
        ("config.yaml", b"- 1\n"),
        ("result.json", b"{"),
        ("result.json", b"3"),
        ("checkpoints/step-000000003/rank0.pt", b""),
        ("checkpoints/step-000000003/rank0.pt", b"no state"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    name: str, content: bytes, directory: RunDirectory
) -> None:
    with directory.claimed():
        directory.begin()
    directory.checkpoints.save(3, {"step": 3, "distiller": {}})
    (directory.path / name).write_bytes(content)
    before = contents(directory.path)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*overwrite=true") as caught:
        take_up(directory)
    assert "\n" not in str(caught.value)
    assert contents(directory.path) == before
    directory.overwrite = True
    with directory.claimed():
        directory.begin()
    directory.overwrite = False
    assert take_up(directory) is None


def take_up(directory: RunDirectory) -> Any:
    with directory.claimed():
        assert directory.result() is None
        return directory.load()


def test_a_checkpoint_cut_short_or_of_another_program(directory: RunDirectory) -> None:
    directory.checkpoints.save(3, {"step": 3, "distiller": {"x": torch.arange(99)}})
    file = directory.path / "checkpoints" / "step-000000003" / "rank0.pt"
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match="is damaged"):
        directory.load()
    torch.save({"epoch": 3}, file)
    with pytest.raises(ValueError, match=r"is damaged \(not the state of a run\)"):
        directory.load()
