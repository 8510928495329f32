"""A run's bank as a data set: the same pixels, read by train.py, and a line for every mistake."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from core.runtime import Runtime
from data.builtin import digits
from data.dataset import Dataset
from data.files import image_folder, npz
from engine.config import compose, plain
from engine.parts import build_dataset
from engine.run import RunDirectory
from engine.teacher_file import blank_teacher
from engine.train import run as train
from models.checkpoint import save_network
from tools.export_bank import main

SMALL = ["device=cpu", "teacher.model.width=8", "student.model.width=4", "steps=4", "batch_size=8"]
SMALL += ["evaluations=1", "checkpoints=1", "method=deep_inversion"]
SMALL += ["synthesizer.iterations=2", "source.student_steps=2", "synthesizer.size=12"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of deep_inversion on digits: two rounds of 12 images, and its last checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    runtime, checkpoint = Runtime("cpu"), folder / "teacher.safetensors"
    settings = plain(compose(SMALL))
    teacher = blank_teacher(settings, build_dataset(settings, runtime))
    save_network(checkpoint, teacher, {})
    train(
        compose([*SMALL, f"run_dir={folder / 'run'}", f"teacher.checkpoint={checkpoint}"]), runtime
    )
    return folder / "run"


@pytest.fixture
def fabricate(tmp_path: Path) -> Callable[..., Path]:
    """A run directory with these sources in its checkpoint, one for each rank."""

    def fabricate(*sources: dict[str, Any], words: Sequence[str] = SMALL) -> Path:
        config = compose([*words, f"run_dir={tmp_path / 'made'}"])
        directory = RunDirectory(config, Runtime("cpu"))
        directory.path.mkdir()
        directory.begin()
        for rank, source in enumerate(sources):
            folder = directory.path / "checkpoints" / "step-000000004"
            folder.mkdir(parents=True, exist_ok=True)
            torch.save({"source": source}, folder / f"rank{rank}.pt")
        return directory.path

    return fabricate


def bank(run: Path, rank: int = 0) -> dict[str, Any]:
    [file] = run.glob(f"checkpoints/step-*/rank{rank}.pt")
    state: dict[str, Any] = torch.load(file, weights_only=True)["source"]["streams"]["bank"]
    return state["bank"]  # type: ignore[no-any-return]


def content(shape: tuple[int, ...] = (1, 8, 8), count: int = 5, round: int = 0) -> dict[str, Any]:
    """The state of a source with a bank."""
    noise = torch.Generator().manual_seed(round)
    held = {
        "images": torch.randint(256, (count, *shape), generator=noise).to(torch.uint8),
        "labels": torch.arange(count) % 10,
        "rounds": torch.full((count,), round, dtype=torch.int32),
    }
    return {"streams": {"bank": {"bank": held}}}


def pixels(dataset: Dataset, which: str) -> tuple[np.ndarray, list[int]]:
    split = dataset.open(which)
    images, labels = split.batch(slice(0, len(split)))
    return (images * 255).round().to(torch.uint8).numpy(), labels.tolist()


def test_npz(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, runtime = tmp_path / "bank.npz", Runtime("cpu")
    assert main([str(finished), str(out)]) == 0
    assert f"data=npz data.path={out} data.size=null" in capsys.readouterr().out
    held = bank(finished)
    assert len(held["images"]) == 24
    dataset = npz(str(out), runtime)
    images, labels = pixels(dataset, "train")
    assert np.array_equal(images, held["images"].numpy())
    assert labels == held["labels"].tolist()
    real, classes = pixels(digits(runtime), "test")
    images, labels = pixels(dataset, "test")
    assert np.array_equal(images, real)
    assert labels == classes
    assert dataset.classes == digits(runtime).classes
    with np.load(out) as arrays:
        assert arrays["train_images"].shape == (24, 8, 8)
        assert arrays["train_rounds"].dtype == np.int32
        assert sorted(set(arrays["train_rounds"].tolist())) == [0, 1]


def test_folder(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, runtime = tmp_path / "folder", Runtime("cpu")
    assert main([str(finished), str(out)]) == 0
    assert "data=image_folder data.dataset.channels=1" in capsys.readouterr().out
    dataset = image_folder(str(out), runtime, size=None, channels=1)
    held = bank(finished)
    order = held["labels"].argsort(stable=True)  # a folder is read class by class
    images, labels = pixels(dataset, "train")
    assert np.array_equal(images, held["images"][order].numpy())
    assert labels == held["labels"][order].tolist()
    assert len(dataset.open("test")) == 360
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_the_data_set_trains_a_student(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank.npz"
    assert main([str(finished), str(out)]) == 0
    arguments = ["method=scratch", "data=npz", f"data.path={out}", "data.size=null", "steps=2"]
    arguments += ["student=digits_cnn_small", "device=cpu", "evaluations=1", "checkpoints=0"]
    result = train(compose([*arguments, f"run_dir={tmp_path / 'run'}"]), Runtime("cpu"))
    assert result["status"] == "finished"


def test_banks_of_all_ranks_are_one(fabricate: Callable[..., Path], tmp_path: Path) -> None:
    ranks = content(count=5, round=1), content(count=3, round=2)
    assert main([str(fabricate(*ranks)), str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["train_rounds"].tolist() == [1] * 5 + [2] * 3
        together = torch.cat([rank["streams"]["bank"]["bank"]["images"] for rank in ranks])[:, 0]
        assert np.array_equal(arrays["train_images"], together.numpy())


def test_a_bank_within_an_experience(fabricate: Callable[..., Path], tmp_path: Path) -> None:
    """MAZE's, which keeps inputs as they are."""
    held = content(count=4)["streams"]["bank"]
    exact = held["bank"]["images"].float() / 255
    source = {"streams": {"fresh": {}, "experience": {"bank": {**held["bank"], "images": exact}}}}
    assert main([str(fabricate(source)), str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["train_images"].dtype == np.uint8
        assert np.array_equal(arrays["train_images"], held["bank"]["images"][:, 0].numpy())


def test_signals_within_an_experience(fabricate: Callable[..., Path], tmp_path: Path) -> None:
    """Of a teacher that was trained for the run: no file says that its range is -1 to 1."""
    exact = torch.tensor([-1.0, -0.25, 0.0, 0.5]).repeat(3, 1, 128)
    held = {**content(count=3)["streams"]["bank"]["bank"], "images": exact}
    run = fabricate(
        {"streams": {"experience": {"bank": held}}},
        words=["data=two_tones", "data.dataset.count=40", "device=cpu"],
    )
    assert main([str(run), str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["train_signals"][2, 0, -4:].tolist() == [-32768, -8192, 0, 16384]


@pytest.fixture
def other_data(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say that runs were on a data set of 4 x 5 images with these class names."""

    def use(classes: list[str], channels: int = 3) -> None:
        def read() -> tuple[np.ndarray, np.ndarray]:
            images = np.arange(len(classes) * 20 * channels, dtype=np.uint8)
            return images.reshape(-1, 4, 5, channels), np.arange(len(classes))

        dataset = Dataset("other", {"test": read}, classes, Runtime("cpu"))
        monkeypatch.setattr("tools.export_bank.build_dataset", lambda *_: dataset)

    return use


def test_columns_that_are_one_category_stay_so(
    fabricate: Callable[..., Path], tmp_path: Path
) -> None:
    """A network that knows them takes what was exported."""
    rows = [f"{i % 7},{['red', 'blue'][i % 2]},{'ab'[i // 2 % 2]}" for i in range(40)]
    (tmp_path / "own.csv").write_text("\n".join(["size,colour,class", *rows]))
    words = ["data=csv", f"data.path={tmp_path / 'own.csv'}", "method=deep_inversion", "device=cpu"]
    settings = plain(compose(words))
    dataset = build_dataset(settings, Runtime("cpu"))
    images = dataset.kind.encode(dataset.open("test").batch(slice(0, 4))[0], dataset.range)
    bank = {"images": images, "labels": torch.arange(4) % 2, "rounds": torch.zeros(4).int()}
    run = fabricate({"streams": {"bank": {"bank": bank}}}, words=words)
    assert main([str(run), str(tmp_path / "out.npz")]) == 0
    found = npz(tmp_path / "out.npz", Runtime("cpu"), modality="vector")
    assert found.groups == dataset.groups == ((1, 3),)
    found.check(blank_teacher(settings, dataset).spec, 2)
    np.savez(tmp_path / "bad.npz", test_vectors=np.zeros((2, 3)), groups=np.arange(3))
    with pytest.raises(ValueError, match=r"groups has shape \(3,\); \[G, 2\], the first column"):
        npz(tmp_path / "bad.npz", Runtime("cpu"), classes=["a", "b"], modality="vector")


def test_colours_and_odd_names(
    fabricate: Callable[..., Path], other_data: Callable[..., None], tmp_path: Path
) -> None:
    names = ["T-shirt/top"] + [f"{i}" for i in range(1, 10)]
    other_data(names)
    source = content((3, 4, 5), count=10)
    held = source["streams"]["bank"]["bank"]["images"].numpy()
    run = fabricate(source)
    assert main([str(run), str(tmp_path / "a.npz")]) == 0
    dataset = npz(str(tmp_path / "a.npz"), Runtime("cpu"))
    assert dataset.classes == tuple(names)
    assert np.array_equal(pixels(dataset, "train")[0], held)
    assert main([str(run), str(tmp_path / "a")]) == 0
    dataset = image_folder(str(tmp_path / "a"), Runtime("cpu"), size=None)
    assert dataset.classes[-1] == "T-shirt_top"
    images, labels = pixels(dataset, "train")
    assert np.array_equal(images[labels.index(9)], held[0])


def test_no_code_of_a_run_directory(
    fabricate: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = fabricate(content()), tmp_path / "out.npz"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["dataset"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for trust in ([], ["trust=[os]"], ["trust=posix"], ["trust=a b"]):
        assert main([str(run), str(out), *trust]) == 1
        assert "error: " in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_mistakes(
    finished: Path,
    fabricate: Callable[..., Path],
    other_data: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(run: Path, out: Path) -> str:
        assert main([str(run), str(out)]) == 1
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "is not a run directory" in fails(tmp_path, out)
    run = fabricate()
    assert "no checkpoint to read the bank from: run it with checkpoints=1" in fails(run, out)
    assert f"{run} exists" in fails(finished, run)
    (run / "checkpoints" / "step-000000004").mkdir(parents=True)
    torch.save({"source": {"step": 3}}, run / "checkpoints" / "step-000000004" / "rank0.pt")
    assert "has no bank: method=deep_inversion keeps no inputs" in fails(run, out)
    torch.save({"source": content()}, run / "checkpoints" / "step-000000004" / "rank0.pt")
    assert "no train image of class 5, and folders need one" in fails(run, out)
    torch.save({"source": content(count=2)}, run / "checkpoints" / "step-000000004" / "rank0.pt")
    other_data(["a", "b"][:1])
    assert "has labels for which other has no classes" in fails(run, out)
    other_data(["a/b", "a_b"])
    assert "not every class name can name a folder" in fails(run, out)
    other_data([".", "b"])
    assert "not every class name can name a folder" in fails(run, out)
    torch.save({"source": content((2, 4, 5))}, run / "checkpoints" / "step-000000004" / "rank0.pt")
    other_data([str(i) for i in range(10)], 2)
    assert "images of 1 or 3 channels" in fails(run, out)
    assert "cannot write" in fails(run, tmp_path / "missing" / "out.npz")
    assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]


def test_a_full_disk_leaves_nothing(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save, saved = Image.Image.save, []

    def full(image: Image.Image, path: Path) -> None:
        saved.append(path)
        if len(saved) > 3:
            raise OSError(28, "No space left on device")
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", full)
    assert main([str(finished), str(tmp_path / "out")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert saved[0].is_relative_to(tmp_path / "out.partial")
    assert not list(tmp_path.iterdir())
