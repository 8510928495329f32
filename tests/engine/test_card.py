"""The model card of a run: what it says is what the other files say, and its lines work."""

import contextlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from core.runtime import Runtime
from engine.card import CARD, MARK, _code, card, write_card
from engine.config import compose, plain
from engine.parts import build_dataset, build_parts
from engine.run import RunDirectory
from models.digits import DigitsCNN
from tests.engine.runs import TINY


def rows(text: str, *, of: int) -> dict[str, list[str]]:
    """The rows of all tables with so many columns, by their first cell."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells if len(rest) == of - 1}


def test_a_card(tiny: list[str], teacher: Path, tmp_path: Path) -> None:
    """Its figures are the result's, its command is the run's, its lines load the student."""
    path = tmp_path / "run"
    assert train.main([*tiny, "steps=4", "ema=0.5", f"run_dir={path}"]) == 0
    text, result = (path / CARD).read_text(), json.loads((path / "result.json").read_text())
    assert text.startswith(f"{MARK}\n# digits_cnn_small(width=4), a student of digits_cnn(width=8)")
    what, figures = rows(text, of=2), rows(text, of=3)
    student = result["student"]
    for name, value in (
        ("accuracy", student["accuracy"]),
        ("accuracy of the teacher", result["teacher"]["accuracy"]),
        ("ECE", student["ece"]),
        ("bn gap", result["synthesized"]["bn_gap"]),
    ):
        assert figures[name][0] in (f"{value:.2%}", f"{value:.4g}"), name
    assert "the test split of digits: 360 inputs" in text
    assert what["data"] == ["`digits`, for evaluation only"]
    assert f"loaded from `{teacher}`" in what["teacher"][0]
    assert "decay 0.5" in what["student"][0]
    assert "1 x 8 x 8, values from 0 to 1" in what["input"][0]
    assert what["real training inputs read"] == ["0"]
    assert what["torch"] == [torch.__version__]
    assert str(tmp_path) not in text.replace(str(teacher), "")
    assert "![inputs](inputs.png)" in text
    same = RunDirectory(compose([*overrides(text), f"run_dir={path}"]), Runtime("cpu"))
    with same.claimed():  # or the directory would be of another configuration
        assert same.result() == result
    loads(text, path)


def overrides(text: str) -> list[str]:
    """What a shell makes of the command in a card."""
    found = re.search(r"    python train\.py ((?:.*\\\n)*.*)\n", text)
    assert found
    assert max(map(len, found[0].splitlines())) < 200
    printed = subprocess.check_output(["sh", "-c", f"printf '%s\\0' {found[1]}"], text=True)
    return printed.strip("\0").split("\0")


def loads(text: str, run: Path) -> None:
    """The card's Python, run in the run's folder."""
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    names: dict[str, Any] = {"x": torch.rand(3, 1, 8, 8)}
    with contextlib.chdir(run):
        exec(found[1], names)
    assert names["logits"].shape == (3, 10)


def test_a_card_without_a_teacher(tmp_path: Path) -> None:
    path = tmp_path / "run"
    arguments = ["method=scratch", "steps=2", "data.val_fraction=0.1", f"run_dir={path}"]
    small = [a for a in TINY if not a.startswith(("generator", "steps", "teacher"))]
    assert train.main([*small, *arguments]) == 0
    text = (path / CARD).read_text()
    assert f"{MARK}\n# digits_cnn_small(width=4)\n" in text
    assert "agreement" not in text
    assert "Synthesized" not in text
    assert rows(text, of=2)["data"] == [
        "`digits`, 320 training inputs read"
    ]  # 2 x 16, and 2 x 144 held out
    assert "144 training inputs that were held out" in text


def made(tmp_path: Path, **student: Any) -> str:
    """The card of a run that never was, with these figures."""
    runtime, settings = Runtime("cpu"), plain(compose([*TINY, "method=scratch"]))
    parts = build_parts(settings, build_dataset(settings, runtime), None, runtime)
    settings["student"]["model"]["_target_"] = "audio.Net"
    settings["choices"]["method"], settings["data"]["path"] = "somebody's", "a b.npz"
    figures = {"name": "a|b\nc", "accuracy": None, "best_accuracy": None, "agreement": None}
    cost = dict.fromkeys(("images_synthesized", "teacher_queries", "real_training_inputs_read"), 0)
    seconds = {f"{k}_seconds": 1.0 for k in ("wall", "synthesis", "distillation", "evaluation")}
    result: dict[str, Any] = {
        "method": "somebody's",
        "data": "digits",
        "seed": 0,
        "teacher": None,
        "measured_on": {"labels": True, "what": "nothing"},
        "student": figures | {"ece": None, "parameters": 5} | student,
        "cost": cost | seconds | {"peak_memory_bytes": 1, "device": "cpu", "precision": "fp32"},
    }
    return card(tmp_path, settings, parts, result)


def test_what_was_not_measured_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "audio", types.SimpleNamespace(Net=DigitsCNN))  # type: ignore[arg-type]
    text = made(tmp_path)
    assert rows(text, of=3)["accuracy"][0] == "not measured"
    assert "highest accuracy" not in text
    assert "with the settings in config.yaml" in text  # no command names such a method
    # whose code builds the student
    assert "evaluate RUN data=digits 'data.path=a b.npz' trust=[audio]\n" in text
    assert r"a\|b c, 5 parameters" in text


def test_verbatim_text_stays_verbatim() -> None:
    assert _code("a*b_c<d>") == "`a*b_c<d>`"
    assert _code("a``b") == "``` a``b ```"


def test_somebody_elses_readme_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_card(tmp_path, f"{MARK}\nfirst")
    write_card(tmp_path, f"{MARK}\nsecond")
    assert (tmp_path / CARD).read_text() == f"{MARK}\nsecond"
    (tmp_path / CARD).write_text("my notes")
    write_card(tmp_path, f"{MARK}\nthird")
    assert (tmp_path / CARD).read_text() == "my notes"
    assert f"{tmp_path / CARD} is not this program's" in capsys.readouterr().out
