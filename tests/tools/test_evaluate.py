"""Any network on any data: figures that are the run's own, and a line for every mistake."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from core.runtime import Runtime
from data.dataset import Split
from data.spec import InputSpec
from engine.config import compose, plain
from engine.networks import build_network
from engine.parts import build_dataset
from engine.teacher_file import blank_teacher
from engine.train import run as train
from models.classifier import Classifier
from models.pretrained import save_network
from tools.evaluate import main

SMALL = ["device=cpu", "teacher.model.width=8", "student.model.width=4", "steps=4", "batch_size=8"]
SMALL += ["evaluations=1", "checkpoints=1", "method=kd"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher that was not trained and a run of kd under it."""
    folder = tmp_path_factory.mktemp("runs")
    runtime, checkpoint = Runtime("cpu"), folder / "teacher.safetensors"
    settings = plain(compose(SMALL))
    torch.manual_seed(3)
    save_network(checkpoint, blank_teacher(settings, build_dataset(settings, runtime)), {})
    train(
        compose([*SMALL, f"run_dir={folder / 'run'}", f"teacher.checkpoint={checkpoint}"]), runtime
    )
    return folder


@pytest.fixture
def measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any], str]]:
    """What the command finds, and what it says."""

    def measured(*arguments: str) -> tuple[dict[str, Any], str]:
        out = tmp_path / "found.json"
        out.unlink(missing_ok=True)
        assert main([*arguments, "device=cpu", "--json", str(out)]) == 0, capsys.readouterr().err
        return json.loads(out.read_text()), "".join(capsys.readouterr())

    return measured


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def refused(*arguments: str) -> str:
        out = tmp_path / "none.json"
        assert main(["--json", str(out), *arguments, "device=cpu"]) == 1
        assert not out.exists()
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return refused


def test_a_run_on_its_own_data(finished: Path, measured: Callable[..., Any]) -> None:
    known = ["teacher.model.width=8", f"teacher.checkpoint={finished / 'teacher.safetensors'}"]
    found, text = measured(str(finished / "run"), "data=digits", *known)
    result = json.loads((finished / "run" / "result.json").read_text())
    for key in ("accuracy", "agreement", "ece", "parameters"):
        assert found[key] == pytest.approx(result["student"][key], abs=1e-7), key
    assert found["teacher_accuracy"] == pytest.approx(result["teacher"]["accuracy"])
    assert [row["name"] for row in found["classes"]] == [str(i) for i in range(10)]
    assert [row["inputs"] for row in found["classes"]] == [36] * 10
    for key in ("accuracy", "agreement"):
        mean = sum(row["inputs"] * row[key] for row in found["classes"]) / 360
        assert mean == pytest.approx(found[key])
    right = sum(n for a, b, n in found["confusion"] if a == b)
    assert right / 360 == pytest.approx(found["accuracy"])
    assert sum(n for *_, n in found["confusion"]) == 360
    assert f"{found['accuracy']:.2%}" in text
    assert " taken for " in text
    again, _ = measured(str(finished / "run" / "student.safetensors"), "data=digits")
    assert again["classes"] == [row | {"agreement": None} for row in found["classes"]]
    assert again["agreement"] is None


def test_values_in_another_range(
    finished: Path, tmp_path: Path, measured: Callable[..., Any]
) -> None:
    """Student and teacher need not take the same values: each gets its own."""
    runtime, settings = Runtime("cpu"), plain(compose(SMALL))
    dataset = build_dataset(settings, runtime)
    module = build_network(settings["teacher"]["model"], dataset.shape, dataset.classes)
    one = InputSpec((1, 8, 8), (0.0, 1.0), (0.5,), (0.5,))
    two = InputSpec((1, 8, 8), (-1.0, 1.0), (0.0,), (1.0,))
    for name, spec in (("one", one), ("two", two)):
        save_network(tmp_path / name, Classifier(module, spec, dataset.classes), {})
    network = ["student=digits_cnn", "student.model.width=8", "teacher.model.width=8"]
    found, _ = measured(
        str(tmp_path / "one"), "data=digits", *network, f"teacher.checkpoint={tmp_path / 'two'}"
    )
    assert found["agreement"] == 1.0
    assert found["accuracy"] == found["teacher_accuracy"]


def pictures(folder: Path, classes: list[str]) -> str:
    """Colour images, 32 x 32, of these classes."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    for which in ("train", "test"):
        arrays[f"{which}_images"] = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        arrays[f"{which}_labels"] = np.arange(20) % len(classes)
    np.savez(folder / "data.npz", **arrays)
    return f"data.path={folder / 'data.npz'}"


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_file_of_another_library(
    library: str,
    tmp_path: Path,
    measured: Callable[..., Any],
) -> None:
    torch.manual_seed(0)
    network: nn.Module
    if library == "timm":
        import timm

        network = timm.create_model("resnet10t", num_classes=4)
    else:
        import torchvision

        network = torchvision.models.squeezenet1_1(num_classes=4)
    name = "resnet10t" if library == "timm" else "squeezenet1_1"
    torch.save({"state_dict": network.state_dict()}, tmp_path / "net.pth")
    data = ["data=npz", pictures(tmp_path, list("abcd"))]
    arguments = [str(tmp_path / "net.pth"), *data, f"student={library}"]
    arguments.append(f"student.model.name={name}")
    _, text = measured(*arguments)  # as the library's own weights are normalised
    assert f"normalised as for {library}'s {name}: " in text
    found, _ = measured(*arguments, "student.mean=[0.4,0.5,0.6]", "student.std=[0.2,0.3,0.4]")
    with np.load(tmp_path / "data.npz") as arrays, torch.no_grad():
        x = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2) / 255
        x = (x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / torch.tensor(
            [0.2, 0.3, 0.4]
        ).view(1, 3, 1, 1)
        predicted = network.eval()(x).argmax(1)
        pairs = zip(arrays["test_labels"].tolist(), predicted.tolist(), strict=True)
    wanted: dict[tuple[int, int], int] = {}
    for pair in pairs:
        wanted[pair] = wanted.get(pair, 0) + 1
    assert {(a, b): n for a, b, n in found["confusion"]} == wanted


def test_data_without_labels(
    finished: Path,
    measured: Callable[..., Any],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = Split.batches

    def unlabelled(self: Split, size: int) -> Any:
        return ((images, None) for images, _ in batches(self, size))

    monkeypatch.setattr(Split, "batches", unlabelled)
    monkeypatch.setattr(Split, "labelled", False)
    arguments = [str(finished / "run"), "data=digits", "teacher.model.width=8"]
    known = f"teacher.checkpoint={finished / 'teacher.safetensors'}"
    found, text = measured(*arguments, known)
    assert found["accuracy"] is found["ece"] is found["teacher_accuracy"] is None
    assert found["reference"] == "teacher"
    assert 0 <= found["agreement"] <= 1
    assert found["ece_to_teacher"] is not None
    assert "not measured: the data has no labels" in text
    assert "an input's class is the teacher's prediction" in text
    assert "measured: give teacher=NAME teacher.checkpoint=" in refused(*arguments[:2])


def test_classes_of_data_without_labels_are_those_of_the_file(
    finished: Path, tmp_path: Path, measured: Callable[..., Any]
) -> None:
    np.savez(tmp_path / "new.npz", test_images=np.zeros((5, 8, 8), np.uint8))
    data = ["data=npz", f"data.path={tmp_path / 'new.npz'}", "data.size=8"]
    checkpoint = f"teacher.checkpoint={finished / 'teacher.safetensors'}"
    known = ["teacher=digits_cnn", "teacher.model.width=8", checkpoint]
    found, _ = measured(str(finished / "run"), *data, *known)
    assert [row["name"] for row in found["classes"]] == list("0123456789")
    assert found["accuracy"] is None
    assert found["inputs"] == 5


def test_names_that_differ_are_pointed_out(
    finished: Path, tmp_path: Path, measured: Callable[..., Any]
) -> None:
    arrays = {"classes": np.array(list("0123456798"))}
    for which in ("train", "test"):
        arrays[f"{which}_images"] = np.zeros((10, 8, 8), np.uint8)
        arrays[f"{which}_labels"] = np.arange(10)
    np.savez(tmp_path / "data.npz", **arrays)
    data = ["data=npz", f"data.path={tmp_path / 'data.npz'}", "data.size=null"]
    found, text = measured(str(finished / "run"), *data)
    assert "warning: class 8 is '8' in" in text
    assert found["inputs"] == 10


def test_another_split_of_the_same_data_is_pointed_out(
    finished: Path, measured: Callable[..., Any]
) -> None:
    said = measured(str(finished / "run"), "data=digits", "data.val_fraction=0.25")[1]
    assert "warning: the run" not in said  # that share is no part of the test split
    config = finished / "run" / "config.yaml"
    text = config.read_text()
    node = yaml.safe_load(text)
    node["data"]["dataset"]["mean"] = [0.5]
    config.write_text(yaml.safe_dump(node))
    said = measured(str(finished / "run"), "data=digits")[1]
    config.write_text(text)
    assert "warning: the run had data.dataset.mean=[0.5], and here it is None" in said


def test_mistakes(finished: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    run, file = str(finished / "run"), str(finished / "teacher.safetensors")
    assert "on which data?" in refused(run)
    assert "no 'mnits'; did you mean 'mnist'?" in refused(run, "data=mnits")
    assert "does not exist" in refused(str(tmp_path / "none"), "data=digits")
    assert "it has no config.yaml" in refused(str(tmp_path), "data=digits")
    assert "student=NAME" in refused(file, "data=digits")
    assert "leave out student=digits_cnn" in refused(run, "data=digits", "student=digits_cnn")
    assert "teacher.checkpoint=FILE" in refused(run, "data=digits", "teacher=digits_cnn")
    assert "student.modle: no 'modle'; did you mean" in refused(
        file, "data=digits", "student=digits_cnn", "student.modle=3"
    )
    assert f"{file} does not fit" in refused(file, "data=digits", "student=digits_cnn_small")
    data = pictures(tmp_path, list("abcd"))
    error = refused(run, "data=npz", data)
    assert "the network expects inputs of shape (1, 8, 8)" in error
    assert "without torchrun" not in error


def test_no_place_for_the_answer(finished: Path, tmp_path: Path, capsys: Any) -> None:
    for out, said in ((tmp_path, "exists: remove it"), (tmp_path / "a" / "b", "is not a folder")):
        assert main([str(finished / "run"), "data=digits", f"--json={out}"]) == 1
        assert said in capsys.readouterr().err


def test_a_strangers_run(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[..., Any],
    refused: Callable[..., str],
) -> None:
    """Its configuration names code that is run only where the user trusts it."""
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    config, ours = (run / "config.yaml").read_text(), "models.digits.DigitsCNN"
    assert ours in config
    (tmp_path / "audio.py").write_text(
        "from models.digits import DigitsCNN\nfrom pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\nclass Net(DigitsCNN): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("audio.Net", "os.system", "models.external.difflib.get_close_matches"):
        (run / "config.yaml").write_text(config.replace(ours, target))
        said = refused(str(run), "data=digits")
        assert target in said
        assert "no part of this project" in said
        assert not (tmp_path / "ran").exists()
    for text in ("student: [", "!!python/object/apply:os.system [touch ran]", "student: 3", ""):
        (run / "config.yaml").write_text(text)
        assert "is not a run's configuration" in refused(str(run), "data=digits")
    (run / "config.yaml").write_text(config.replace(ours, "audio.Net"))
    found, _ = measured(str(run), "data=digits", "trust=[audio]")
    assert found["architecture"] == "Net"
    (run / "student.safetensors").unlink()
    assert "holds no student yet" in refused(str(run), "data=digits", "trust=[audio]")
    save_file({"x": torch.zeros(1)}, run / "student.safetensors")
    said = refused(str(run), "data=digits", "trust=[audio]")
    assert "does not say what its inputs and classes are" in said
