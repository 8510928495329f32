"""A teacher and nothing else: what has to be told, what is measured, and how long it takes."""

import contextlib
import io
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train
from core.runtime import Runtime, Stopped
from engine.config import ConfigError, compose, plain, written
from engine.parts import build_dataset
from engine.probe import Probe
from engine.teacher_file import load_teacher
from engine.train import run
from models.checkpoint import load_weights
from models.digits import DigitsCNN
from tests.engine.runs import Run, differing

SMALL = ["device=cpu", "teacher=digits_cnn", "teacher.model.width=8", "student=digits_cnn_small"]
SMALL += ["student.model.width=4", "generator=small", "generator.channels=16", "batch_size=16"]
SMALL += ["evaluations=1", "checkpoints=2", "steps=4", "data=none"]
DAFL, ZSKD = "dafl: ['steps=2']", "zskd: ['synthesizer.iterations=2', 'steps=1']"
QUICK = ["probe.size=12", f"probe.methods={{{DAFL}, {ZSKD}}}"]
SAID = ["teacher.shape=[1,8,8]", "teacher.classes=10", "teacher.mean=[0.3]", "teacher.std=[0.4]"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the field writes them: it says nothing of its input."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "net.pth"
    torch.save(DigitsCNN(1, 10, 8).state_dict(), path)
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        path = tmp_path / "refused"
        assert train.main([*arguments, f"run_dir={path}", f"run_root={tmp_path / 'root'}"]) == 1
        assert not path.exists()
        return capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all runs, which so share the inputs that they measure on."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def first(weights: Path, root: Path) -> tuple[Path, str]:
    """A finished run, and what it said."""
    said = io.StringIO()
    arguments = [*SMALL, *QUICK, f"teacher.checkpoint={weights}", *SAID]
    with contextlib.redirect_stdout(said):
        assert train.main([*arguments, f"run_dir={root / 'first'}", f"run_root={root}"]) == 0
    return root / "first", said.getvalue()


@pytest.fixture
def finished(tmp_path: Path, root: Path, weights: Path) -> Callable[..., dict[str, Any]]:
    def call(name: str, *arguments: str) -> dict[str, Any]:
        place = [f"run_dir={tmp_path / name}", f"run_root={root}"]
        common = [*SMALL, *QUICK, f"teacher.checkpoint={weights}", *SAID, "plan=false"]
        assert train.main([*common, *arguments, *place]) == 0
        return json.loads((tmp_path / name / "result.json").read_text())

    return call


def student(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path / "student.safetensors")[0]


def test_all_that_is_missing_is_asked_for_at_once(
    weights: Path, refused: Callable[..., str]
) -> None:
    said = refused("data=none")
    for key in ("teacher", "teacher.checkpoint", "teacher.shape", "teacher.classes", "student"):
        assert re.search(rf"^  {re.escape(key)} ", said, re.MULTILINE), key
    assert "python train.py data=none run_dir=" in said
    assert "teacher=NAME teacher.checkpoint=FILE teacher.shape=[3,64,64]" in said
    told = [f"teacher.checkpoint={weights}", "teacher=digits_cnn", SAID[0], SAID[2]]
    said = refused("data=none", *told)
    assert "teacher.shape " not in said
    assert "teacher.std " in said
    [command] = [line for line in said.splitlines() if line.startswith("  python train.py")]
    assert re.search(r"teacher.classes=10 student=\w+$", command)


def test_students_that_fit_are_proposed_with_their_sizes(
    weights: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["lenet5", "digits_cnn_small", "wrn_16_1", "resnet8x4", "resnet20", "wrn"]
    nodes = {name: plain(written("model", name)) for name in names}
    monkeypatch.setattr("engine.config._networks", lambda own: nodes)  # all of them take seconds
    said = refused("data=none", f"teacher.checkpoint={weights}", "teacher=resnet18", *SAID)
    [line] = [line for line in said.splitlines() if "one that fits" in line]
    sizes = [float(n) * {"k": 1e3, "M": 1e6}[u] for n, u in re.findall(r"\(([\d.]+) ([kM])", line)]
    assert "fits 1x8x8 and 10 classes" in line
    assert "lenet5" not in line  # which takes no 8x8
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    assert line.endswith("the teacher has 11.2 M parameters")
    assert sizes[-1] < 11.2e6


@pytest.mark.parametrize(
    "argument",
    ["teacher.model=[]", "student.model=3", "teacher.model._target_={_target_: x}", "distiller=[]"],
)
def test_what_is_no_part_is_a_mistake_as_with_data(argument: str) -> None:
    with pytest.raises(ConfigError, match=argument.partition("=")[0]):
        compose(["data=none", "method=dafl", "teacher=resnet18", "student=resnet8x4", argument])


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["teacher.mean=[0.3,0.3]"], "mean and std need one value for each of the 1 channel"),
        (["teacher.mean=[80.0]", "teacher.std=[90.0]"], "divide mean and std by 255"),
        (["teacher.classes=7"], "of another shape"),
        (["teacher.classes=7"], "7 classes (teacher.classes) and inputs of shape [1, 8, 8]"),
        (["teacher.classes=1"], "at least 2"),
        (["teacher.shape=[3,8,8]", "teacher.mean=[0,0,0]", "teacher.std=[1,1,1]"], "shape"),
        (["teacher.model.width=16"], "does not fit DigitsCNN"),
        (["budget=20s"], "steps and budget both set the length"),
        (["method=kd"], "nothing to train on"),
    ],
)
def test_what_cannot_be_is_refused(
    told: list[str], said: str, weights: Path, refused: Callable[..., str]
) -> None:
    assert said in refused(*SMALL, *QUICK, f"teacher.checkpoint={weights}", *SAID, *told)


@pytest.mark.parametrize(
    ("budget", "said"), [("1ms", "write 90s, 10m"), ("0.01s", "budget=0.01s is too short")]
)
def test_a_budget_that_cannot_be_is_refused(
    budget: str, said: str, weights: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    told = [*(a for a in SMALL if a != "steps=4"), *QUICK, f"teacher.checkpoint={weights}", *SAID]
    assert said in refused(*told, f"budget={budget}")
    assert not (tmp_path / "root").exists()  # it is known before a probe is made


def test_a_run_without_data_measures_agreement_and_no_accuracy(first: tuple[Path, str]) -> None:
    path, said = first
    result = json.loads((path / "result.json").read_text())
    assert result["student"]["accuracy"] is None
    assert result["teacher"]["accuracy"] is None
    assert 0 <= result["student"]["agreement"] <= 1
    assert 0 <= result["student"]["ece_to_teacher"] <= 1
    on = result["measured_on"]
    assert (on["inputs"], on["labels"], on["real"]) == (24, False, False)
    assert on["what"].startswith("24 inputs synthesized from the teacher by dafl and zskd")
    assert sum(c["inputs"] for c in result["classes"]) == 24
    assert result["cost"]["real_training_inputs_read"] == 0
    assert "not known: there are no labels" in said
    card = (path / "README.md").read_text()
    assert "accuracy is unknown" in card
    assert "RUN data=NAME" in card


def test_a_plan_comes_before_the_run(first: tuple[Path, str]) -> None:
    """Unasked where there is no data; and each slow synthesis before it is said."""
    said = first[1]
    assert "1x8x8 (teacher.shape), values 0 to 1 (assumed), mean 0.3 (teacher.mean)" in said
    assert "10 (teacher.classes)" in said
    assert re.search(r"ms a step, .* an evaluation; 4 steps take about", said)
    assert said.index("measuring: dafl synthesizes 12 inputs") < said.index("  teacher   digits")
    assert said.index("  teacher   digits") < said.index("student accuracy")


def test_the_probe_is_the_same_for_every_method_but_its_own(
    first: tuple[Path, str], root: Path, finished: Callable[..., dict[str, Any]]
) -> None:
    """Its inputs depend on the teacher alone, and are made once."""

    def made() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (root / "probes").iterdir()}

    before = made()
    assert len(before) == 2
    finished("b", "method=dfad", "seed=3", "batch_size=8")
    assert made() == before
    more = f"probe.methods={{{DAFL}, {ZSKD}, dfad: ['steps=1']}}"
    result = finished("c", "method=dafl", more)
    assert "by zskd and dfad" in result["measured_on"]["what"]


def test_test_images_without_labels_are_enough(
    finished: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", test_images=images)
    result = finished("a", "data=npz", f"data.path={tmp_path / 'x.npz'}", "data.size=8")
    assert result["student"]["accuracy"] is None
    assert result["measured_on"]["inputs"] == 9
    assert result["measured_on"]["real"]
    assert "which have no labels" in result["measured_on"]["what"]
    (tmp_path / "flat").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "flat" / f"{i}.png")
    flat = ["data=image_folder", f"data.path={tmp_path / 'flat'}", "data.dataset.channels=1"]
    config = compose([*SMALL, *SAID, *flat, "data.size=8"])
    split = build_dataset(plain(config), Runtime("cpu")).open("test")
    assert (len(split), split.labelled) == (9, False)


def test_labels_of_a_test_split_alone_give_accuracy(
    finished: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", test_images=images, test_labels=np.arange(20) % 10)
    result = finished("a", "data=npz", f"data.path={tmp_path / 'x.npz'}", "data.size=8")
    assert 0 <= result["student"]["accuracy"] <= 1
    assert result["measured_on"]["labels"]


def budgeted(weights: Path, root: Path, path: Path, *more: str) -> list[str]:
    given = [a for a in SMALL if not a.startswith("steps=")]
    place = [f"run_dir={path}", f"run_root={root}", "plan=false"]
    return [*given, *QUICK, f"teacher.checkpoint={weights}", *SAID, "budget=2s", *place, *more]


def test_a_budget_fixes_the_steps_which_repeat_the_run(
    weights: Path, root: Path, finished: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """In rounds, too, which are timed by themselves."""
    rounds = ["method=deep_inversion", "synthesizer.iterations=5", "source.student_steps=9"]
    rounds += ["synthesizer.size=8"]
    assert train.main(budgeted(weights, root, tmp_path / "timed", *rounds)) == 0
    result = json.loads((tmp_path / "timed" / "result.json").read_text())
    assert result["cost"]["budget_seconds"] == 2
    steps = result["cost"]["steps"]
    assert steps > 2
    again = finished("again", *rounds, f"steps={steps}")
    assert "budget_seconds" not in again["cost"]
    assert not differing(student(tmp_path / "timed"), student(tmp_path / "again"))
    assert f"steps={steps}" in (tmp_path / "timed" / "README.md").read_text()


def test_the_steps_of_a_budget_survive_a_kill(
    weights: Path,
    root: Path,
    finished: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the machine does by then, the number that was fixed at first is kept."""
    arguments = budgeted(weights, root, tmp_path / "a", "checkpoints=1000")
    killed = Run(arguments, tmp_path / "log", ("in_save", 0.5, 2))
    assert killed.wait() == -signal.SIGKILL, killed.output
    steps = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["steps"]
    assert steps > 2
    monkeypatch.setattr("engine.length.time_steps", lambda *a: pytest.fail("it was timed again"))
    assert train.main(arguments) == 0
    assert json.loads((tmp_path / "a" / "result.json").read_text())["cost"]["steps"] == steps
    finished("whole", f"steps={steps}")
    assert not differing(student(tmp_path / "a"), student(tmp_path / "whole"))


def test_a_signal_ends_the_synthesis_of_a_probe(weights: Path, tmp_path: Path) -> None:
    place = [f"run_dir={tmp_path / 'run'}", f"run_root={tmp_path / 'root'}"]
    config = compose([*SMALL, *QUICK, f"teacher.checkpoint={weights}", *SAID, "plan=false", *place])
    runtime = Runtime("cpu")
    runtime.stop_requested = True
    with pytest.raises(Stopped, match="before the first step; the same command starts again"):
        run(config, runtime)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "root").exists()


def test_a_damaged_probe_is_made_again(weights: Path, tmp_path: Path) -> None:
    place = [f"teacher.checkpoint={weights}", f"run_root={tmp_path}"]
    settings = plain(config := compose([*SMALL, *QUICK, *SAID, *place]))
    dataset = build_dataset(settings, runtime := Runtime("cpu"))
    teacher = load_teacher(settings, str(weights), dataset, runtime)
    before = Probe(config, dataset, teacher, runtime).split.batch(slice(0, 99))[0]
    file = next((tmp_path / "probes").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    after = Probe(config, dataset, teacher, runtime).split.batch(slice(0, 99))[0]
    assert torch.equal(before, after)
