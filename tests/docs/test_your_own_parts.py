"""docs/your-own-parts.md, to the letter: its files, its commands, and what it says of them."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.trust import sort_trust
from tests.engine.runs import Run, at_step, ranks
from tests.user_parts import PAGE, forgotten, written_parts
from tools import evaluate, export, quality
from tools.report.runs import read_runs

SHORT = ["device=cpu", "steps=12", "batch_size=16", "evaluations=2", "checkpoints=6", "log_every=4"]
SHORT += ["teacher.model.width=4", "data.training.steps=20", "data.dataset.count=100"]


@pytest.fixture(scope="module")
def command() -> list[str]:
    """The page's command, less the folder."""
    [line] = re.findall(r"    python train.py config_path=parts (.*)", PAGE.read_text())
    return line.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_parts(tmp_path_factory.mktemp("own") / "parts")


@pytest.fixture(scope="module")
def run(folder: Path, command: list[str]) -> Path:
    """Its run, which was killed, and went on from a folder with another spelling."""
    link = folder.parent / "link"
    link.symlink_to(folder)
    words = [*command, *SHORT, f"run_root={folder.parent / 'runs'}"]
    log = folder.parent / "log"
    killed = Run([f"config_path={folder}", *words], log, (at_step.__name__, 8, 9, 1, "calm"))
    assert killed.wait() == -signal.SIGKILL, killed.output
    [path] = (folder.parent / "runs").glob("stripes-calm-*/")
    assert len(list(path.glob("checkpoints/step-*"))) == 1
    continued = Run([f"config_path={link}", *words], log)
    assert continued.wait() == 0, continued.output
    assert "resumed at step 8 of 12" in continued.output
    assert len(list((folder.parent / "runs").iterdir())) == 2  # the teacher's, and this
    return path


def test_results_call_the_parts_by_their_names(run: Path) -> None:
    assert run.name.startswith("stripes-calm-digits_cnn-width-4-tiny-seed0-")
    result = json.loads((run / "result.json").read_text())
    assert (result["data"], result["method"]) == ("stripes", "calm")
    assert result["student"]["name"] == "tiny"
    assert result["cost"]["real_training_inputs_read"] == 0
    card = (run / "README.md").read_text()
    assert "`calm`: DFQ with a softer teacher and a smaller step." in card
    assert "| losses | `kd`, `hint` |" in card
    assert re.search(r"python train.py[\s\\]+config_path=\S+/link[\s\\]+method=calm ", card)
    assert re.search(r"evaluate RUN data=stripes \S+=100 config_path=\S+/link\n", card)
    assert re.search(r"export RUN student.pt2 config_path=\S+/link\n", card)
    report = read_runs(run)
    assert report.settings["choices.data"] == "stripes"
    assert "hint" in "".join(report.series)


def test_tools_need_the_folder(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, count = f"config_path={folder}", "data.dataset.count=100"

    def refused(tool: Callable[[list[str]], int], *words: str) -> str:
        assert tool([str(run), *words]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    out = str(tmp_path / "out.pt2")
    assert "add config_path=DIR" in refused(evaluate.main, "data=stripes")
    for said in (
        refused(evaluate.main, "data=digits"),
        refused(export.main, out),
        refused(quality.main),
    ):
        assert re.search(r"add trust=\[tiny.*\] or config_path=DIR", said)
    assert "tiny" not in sys.modules
    with forgotten(folder):
        result = json.loads((run / "result.json").read_text())
        found = evaluate.evaluate(run, ["data=stripes", count, own])
        assert found["data"] == "stripes"
        assert found["accuracy"] == pytest.approx(result["student"]["accuracy"])
        file = run / "student.safetensors"
        named = evaluate.evaluate(file, ["student=tiny", "data=stripes", count, own])
        assert named["accuracy"] == found["accuracy"]
        assert "largest difference" in export.export(run, tmp_path / "out.pt2", [own])
        export.export(file, tmp_path / "named.pt2", [own, "student=tiny"])
        trusted, _ = sort_trust([own])
        assert quality.quality_of_run(run, ["stage1"], 40, trusted).keys() == {"stage1"}


def test_two_processes(folder: Path, tmp_path: Path) -> None:
    words = [f"config_path={folder}", "method=scratch", "data=stripes", "student=tiny", *SHORT]
    words = [word for word in words if not word.startswith("teacher.")]
    both = ranks([*words, f"run_dir={tmp_path / 'run'}", "steps=2"], tmp_path)
    assert [process.wait() for process in both] == [0, 0], both[0].output
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"] == "stripes"
