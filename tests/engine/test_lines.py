"""metrics.jsonl: valid whatever happens, and cut back to what a checkpoint knows."""

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.lines import Lines
from engine.monitor import Board


def read(path: Path) -> list[Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(x, parse_constant=refuse) for x in path.read_text().splitlines()]


def test_a_resume_repeats_nothing_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Lines(path)
    assert not path.exists()
    first.add({"step": 1, "a": 0.1})
    first.add({"step": 2, "a": 0.2})
    saved = first.length
    first.add({"step": 3, "a": 0.3})
    with open(path, "ab") as file:
        file.write(b'{"step": 4, "a"')  # a machine that lost its power
    again = Lines(path, saved)
    assert again.length == saved
    again.add({"step": 3, "a": 0.3})
    assert read(path) == [{"step": i, "a": i / 10} for i in (1, 2, 3)]
    Lines(path, 10**6)  # what is shorter than it was stays as it is
    assert len(read(path)) == 3
    Lines(path, saved - 1)
    assert len(read(path)) == 1
    Lines(path)  # without a checkpoint: all from the start
    assert path.read_bytes() == b""


def test_what_json_cannot_say_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    Lines(path).add({"step": 1, "a": float("nan"), "b": float("-inf"), "c": 1e-300})
    assert read(path) == [{"step": 1, "a": None, "b": None, "c": 1e-300}]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.scalars({"a": 1.0}, 1)
    board.writer.close()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        with pytest.raises(OSError, match="large"):
            board.lines.add({"step": 2, "a": 2.0, "long": 1 / 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1.0}]
    board.lines.add({"step": 2, "a": 2.0})
    assert [x["step"] for x in read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_what_cannot_be_written_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path)

    def full(values: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board.lines, "add", full)
    with pytest.raises(
        ValueError, match=r"could not write the metrics in .*No space left"
    ) as caught:
        board.scalars({"a": 1.0}, 1)
    assert "same command again" in str(caught.value)
    assert "\n" not in str(caught.value)
    board.close()
