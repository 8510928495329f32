"""Whatever ends a run is said in lines, and what cannot be said ends none."""

import os
import sys
from pathlib import Path

import pytest
import torch

import train
from engine.console import explain, unbroken


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr(train, "run", run)
    return train.main(["device=cpu"])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ZeroDivisionError("by zero"), 70, "ZeroDivisionError: by zero"),
        (RecursionError("too deep"), 70, "RecursionError"),
        (RuntimeError("two\nlines"), 70, "RuntimeError: two lines"),
        (ValueError("a key"), 1, "error: a key"),
        (torch.OutOfMemoryError("full"), 1, "smaller batch_size"),
        (MemoryError(), 1, "smaller batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "smaller batch_size"),
        (KeyboardInterrupt(), 130, "stopped before"),
    ],
)
def test_what_ends_a_run(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fails(monkeypatch, error) == code
    text = capsys.readouterr().err
    assert said in text
    if code == 70:
        assert len(text.splitlines()) == 2
        assert "-X dev" in text


def test_only_the_first_rank_says_what_all_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(train.Runtime, "of", lambda _: None)
    monkeypatch.setattr(train, "handle_signals", lambda _: None)
    assert fails(monkeypatch, ValueError("alike")) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_goes_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, name, pipe)
        with unbroken():
            for _ in range(3):
                print("a line", file=getattr(sys, name), flush=True)
        assert getattr(sys, name) is pipe


def test_a_full_disk_and_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            with unbroken():
                print("a line", flush=True)
    monkeypatch.setattr(sys, "stdout", None)
    with unbroken():
        print("a line", flush=True)


def test_a_name_of_any_length_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(OSError(36, "File name too long", "a" * 100_000)) == 1
    assert len(capsys.readouterr().err) < 400
