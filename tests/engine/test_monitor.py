"""What a run shows and leaves: metrics, progress, TensorBoard and result.json."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from core.runtime import Runtime
from engine.evaluate import Evaluator
from engine.monitor import Board, Clock, LossMeter, Progress, brief
from tests.engine.runs import KINDS, contents, events, lines

SCHEMA = {  # of the design, in its order
    "": "schema status method data seed teacher student measured_on cost",
    "teacher": "name accuracy parameters",
    "student": "name accuracy best_accuracy agreement ece parameters",
    "measured_on": "inputs labels real what",
    "cost": "wall_seconds timing_seconds synthesis_seconds distillation_seconds "
    "evaluation_seconds steps images_synthesized teacher_queries real_training_inputs_read "
    "peak_memory_bytes device precision deterministic tf32",
}


def test_the_meter_gives_means_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = LossMeter()
    assert meter.flush() == {}
    transfers = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: transfers.append(t.numel()) or to_list(t))
    for name in ("item", "__float__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, None)
    for step in range(4):
        meter.add(step, {"a": torch.tensor(step), "b": torch.tensor(-1.5, dtype=torch.bfloat16)})
    assert not transfers
    assert meter.flush() == {"a": 1.5, "b": -1.5}
    assert transfers == [3]
    assert meter.flush() == {}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_meter_names_what_is_not_finite(value: str) -> None:
    meter = LossMeter()
    for step in range(5, 9):
        bad = float(value) if step >= 7 else 0.0
        meter.add(step, {"good": torch.tensor(1.0), "bad": torch.tensor(bad)})
    with pytest.raises(ValueError, match=f"bad became {value} at step 7") as caught:
        meter.flush()
    assert "\n" not in str(caught.value)


def test_the_clock_sums_and_continues() -> None:
    clock = Clock(Runtime("cpu"))
    for name in ("one", "two", "one"):
        with clock.part(name):
            time.sleep(0.01)
    seconds = clock.settle()
    assert seconds["one"] >= 0.02
    assert 0.01 <= seconds["two"] < seconds["one"]
    clock.seconds = {"one": 100.0}
    with clock.part("one"):
        pass
    assert 100 < clock.settle()["one"] < 101


def test_progress_prints_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(400, start=100, every=0.0)
    progress.update(200, 32, {"kd": 0.123456, "bn": 2.0}, "accuracy 97.00%")
    progress.close()
    text = capsys.readouterr().out
    assert "\r" not in text
    wanted = r"step 200/400  kd 0\.1235  bn 2  \d+ images/s  accuracy 97\.00%  \d:\d\d:\d\d left\n"
    assert re.fullmatch(wanted, text), text
    seldom = Progress(400)
    for step in range(100):
        seldom.update(step, 32, {})
    assert capsys.readouterr().out == ""


def test_losses_of_one_name_on_both_sides_stay_apart() -> None:
    values = {"student/kd": 1.0, "student/l1": 2.0, "source/l1": 3.0, "source/bn": 4.0}
    assert brief(values) == {"kd": 1.0, "student/l1": 2.0, "source/l1": 3.0, "bn": 4.0}


def test_progress_is_one_live_line_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    progress = Progress(3)
    for step in (1, 2, 3):
        progress.update(step, 32, {"kd": 1.0})
    progress.close()
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert text.count("\r\033[K") == 2  # the first, not the one right after, and the last
    assert "step 3/3" in text


def test_the_board_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.scalars({"a": 1.0}, 1)
    lengths = board.lengths()
    board.scalars({"a": 2.0}, 2)
    board.close()
    (tmp_path / "events.out.tfevents.999.other").write_bytes(b"of a process killed before it saved")
    assert set(events_of(tmp_path, lengths)) == {("a", 1)}
    again = Board(tmp_path, lengths)
    again.scalars({"a": 2.5}, 2)
    again.close()
    assert events(tmp_path) == {("a", 1): 1, ("a", 2): 1}
    Board(tmp_path).close()  # without a checkpoint: all from the start
    assert not events(tmp_path)


def events_of(folder: Path, lengths: dict[str, int]) -> Any:
    board = Board(folder, lengths)
    board.close()
    return events(folder)


def test_result_and_tensorboard(
    tiny: list[str], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    arguments = [*tiny, "method=dfq", "source.student_steps=5", f"run_dir={path}"]
    assert train.main(arguments) == 0
    check_result(json.loads((path / "result.json").read_text()))
    check_files(path)
    check_events(path)
    text = capsys.readouterr().out
    for said in ("teacher accuracy", "student accuracy", "agreement", "images synthesized"):
        assert said in text
    assert re.search(r"real training inputs read +0\n", text)
    assert f"run directory  {path}" in text
    assert f"tensorboard --logdir {path}" in text
    assert f"teacher: loaded from {teacher}" in text


def check_result(result: dict[str, Any]) -> None:
    extra = result.pop("synthesized")
    for part, keys in SCHEMA.items():
        assert list(result[part] if part else result) == keys.split(), part
    assert (result["schema"], result["status"]) == (2, "finished")
    assert (result["method"], result["data"], result["seed"]) == ("dfq", "digits", 0)
    assert result["teacher"]["name"] == "digits_cnn(width=8)"
    student, cost = result["student"], result["cost"]
    for value in (result["teacher"]["accuracy"], student["accuracy"], student["agreement"]):
        assert 0 <= value <= 1
    assert student["best_accuracy"] >= student["accuracy"]
    assert result["teacher"]["accuracy"] > 0.6
    # 24 steps of 16; an update before every fifth of them, on 16 images of its own
    assert cost["steps"] == 24
    assert cost["images_synthesized"] == 24 * 16 + 5 * 16
    assert cost["teacher_queries"] == 24 * 16 + 5 * 16
    assert cost["real_training_inputs_read"] == 0
    assert cost["peak_memory_bytes"] > 10_000_000
    assert (cost["device"], cost["precision"]) == ("cpu", "fp32")
    parts = [cost[f"{k}_seconds"] for k in ("synthesis", "distillation", "evaluation")]
    assert 0 < sum(parts) < cost["wall_seconds"]
    assert sum(extra["class_histogram"]) == pytest.approx(1)
    assert len(extra["class_histogram"]) == 10


def check_files(path: Path) -> None:
    names = {p.split("tfevents")[0] for p in contents(path)}
    assert names == {
        "config.yaml",
        "versions.json",
        "events.out.",
        "checkpoints/step-000000024/rank0.pt",
        "student.safetensors",
        "result.json",
        "inputs.png",
        "metrics.jsonl",
        "README.md",
    }


def check_events(path: Path) -> None:
    found = events(path)
    assert max(found.values()) == 1
    tags = {tag for tag, _ in found}
    wanted = {f"loss/source/{k}" for k in ("bn", "onehot", "adversarial", "balance")}
    wanted |= {"loss/student/kd", "lr/student", "lr/generator", "system/images_per_second"}
    wanted |= {"eval/accuracy", "eval/agreement", "eval/ece"}
    wanted |= {"system/peak_memory_bytes", "system/seconds"}
    wanted |= {f"synthesized/{k}" for k in ("bn_gap", "agreement", "inputs", "classes")}
    assert tags >= wanted, wanted - tags
    evaluated = {step for tag, step in found if tag == "eval/accuracy"}
    assert evaluated == {8, 16, 24}
    logged = {step for tag, step in found if tag == "loss/student/kd"}
    assert logged == set(range(3, 25, 3)) | {4, 8, 12, 16, 20, 24}
    series = {k for k in found if k[0].startswith((*KINDS, "system/"))}
    series -= {("synthesized/inputs", s) for s in evaluated}  # pictures and histograms
    series -= {("synthesized/classes", s) for s in evaluated}
    assert set(lines(path)) == series


def test_the_last_accuracy_is_the_result_and_not_the_best(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.9, 0.5, 0.7])
    fake = {"ece": 0.1, "agreement": 0.2}
    monkeypatch.setattr(Evaluator, "__call__", lambda self: {"accuracy": next(values), **fake})
    assert train.main([*tiny, f"run_dir={tmp_path / 'run'}"]) == 0
    student = json.loads((tmp_path / "run" / "result.json").read_text())["student"]
    assert (student["accuracy"], student["best_accuracy"]) == (0.7, 0.9)


def test_real_inputs_are_counted(tiny: list[str], tmp_path: Path) -> None:
    assert train.main([*tiny, "method=kd", f"run_dir={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["cost"]["real_training_inputs_read"] == 24 * 16
    assert result["cost"]["images_synthesized"] == 0
    assert "synthesized" not in result


def test_what_a_data_free_run_reads_is_counted_by_the_data(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were there a way round the guard, the result would say so."""
    from data.dataset import Dataset
    from generators.mixture import Mixture

    close, following = Dataset.close_training, Mixture.next
    opened = []

    def ajar(self: Dataset) -> None:
        close(self)
        self._training_open = True
        opened.append(self)

    def peek(self: Mixture) -> Any:
        opened[0].open("train").batch(slice(0, 3))
        return following(self)

    monkeypatch.setattr(Dataset, "close_training", ajar)
    monkeypatch.setattr(Mixture, "next", peek)
    assert train.main([*tiny, f"run_dir={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["cost"]["real_training_inputs_read"] == 25 * 3  # 24 steps and a rehearsal
