"""Every data set, generator and experiment runs two steps; a new YAML is found by itself.

Methods are held to more in test_contracts.py, and models in models/test_networks.py.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from scipy.io import wavfile

from benchmarks.reproduce import read_tables
from core.runtime import Runtime
from engine.choices import ROOT
from engine.config import compose, plain
from engine.moments import provisional
from engine.parts import build_dataset, build_parts
from engine.teacher_file import blank_teacher
from engine.train import run
from models.pretrained import freeze
from tests.texts import write_texts

COUNT = 12  # images of each split
LABELS = np.arange(COUNT) % 3
TEN = np.arange(COUNT) % 10
SMALL = {"synthesizer.iterations": 2, "synthesizer.size": 4, "source.warmup": 1}
SMALL |= {"source.streams.bank.capacity": 16}
GREY = ("MNIST", "FashionMNIST", "KMNIST")  # the others are 3 x 32 x 32


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / group).glob("*.yaml"))


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, *shape), dtype=np.uint8)


class Downloaded:
    """What torchvision's reader of a data set gives, for files that nobody has."""

    def __init__(self, root: Path, train: bool = True, split: str = "", download: bool = False):
        assert not download
        grey = type(self).__name__ in GREY
        self.data: Any = pictures(28, 28) if grey else pictures(32, 32, 3)
        self.targets: Any = TEN.tolist()
        if grey:
            self.data, self.targets = torch.from_numpy(self.data), torch.from_numpy(TEN)
        elif split:
            self.data, self.labels = self.data.transpose(0, 3, 1, 2), TEN


@pytest.fixture(autouse=True)
def downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (ROOT / "data").glob("*.yaml"):
        dataset = OmegaConf.load(path).dataset
        for node in (dataset, dataset.get("a", {})):
            name = node.get("name")
            if node.get("_target_") == "data.builtin.torchvision_dataset":
                monkeypatch.setattr(torchvision.datasets, name, type(name, (Downloaded,), {}))


def write_npz(folder: Path) -> Path:
    arrays = {}
    for which in ("train", "test"):
        arrays |= {f"{which}_images": pictures(28, 28, 3), f"{which}_labels": LABELS}
    np.savez(folder / "own.npz", **arrays)
    return folder / "own.npz"


def write_folder(folder: Path) -> Path:
    for which in ("train", "test"):
        for i, picture in enumerate(pictures(20, 20, 3)):
            place = folder / which / f"class{LABELS[i]}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{i}.png")
    return folder


def write_signals(folder: Path) -> Path:
    return write_arrays(folder, "signals", np.random.default_rng(0).uniform(-1, 1, (COUNT, 512)))


def write_vectors(folder: Path) -> Path:
    return write_arrays(folder, "vectors", np.random.default_rng(0).random((COUNT, 7)))


def write_numbers(folder: Path) -> Path:
    return write_arrays(
        folder,
        "texts",
        np.random.default_rng(0).integers(0, 5, (COUNT, 6)),
        words=np.array(["<pad>", "<unk>", "a", "b", "c"]),
    )


def write_arrays(folder: Path, many: str, inputs: np.ndarray, **more: np.ndarray) -> Path:
    arrays = {f"{which}_{many}": inputs for which in ("train", "test")}
    np.savez(folder / "own.npz", **arrays, train_labels=LABELS, test_labels=LABELS, **more)
    return folder / "own.npz"


def write_pairs(folder: Path) -> Path:
    arrays = {"a": pictures(16, 16), "b": np.random.default_rng(0).random((COUNT, 1, 512))}
    named = {f"{w}_inputs_{p}": x for p, x in arrays.items() for w in ("train", "test")}
    np.savez(folder / "own.npz", **named, train_labels=LABELS, test_labels=LABELS)
    return folder / "own.npz"


def write_csv(folder: Path) -> Path:
    lines = [
        "width,colour,class",
        *(f"{i},{'red' if i % 2 else 'blue'},{i % 3}" for i in range(24)),
    ]
    (folder / "own.csv").write_text("\n".join(lines))
    return folder / "own.csv"


def write_audio(folder: Path) -> Path:
    for which, label in itertools.product(("train", "test"), ("low", "high")):
        place = folder / which / label
        place.mkdir(parents=True)
        for i in range(COUNT // 2):
            noise = np.random.default_rng(i).integers(-999, 999, 512, dtype=np.int16)
            wavfile.write(place / f"{i}.wav", 8000, noise)
    return folder


def write_speech(folder: Path) -> Path:
    place = folder / "recordings"
    place.mkdir()
    for digit in range(10):
        for index in (0, 9):
            noise = np.random.default_rng(digit).integers(-999, 999, 512, dtype=np.int16)
            wavfile.write(place / f"{digit}_theo_{index}.wav", 8000, noise)
    return place


def write_queries(folder: Path) -> Path:
    rows = [[f"pay my {i} bills", f"i{i % 3}", f"d{i % 3}"] for i in range(COUNT)]
    names = {"domains": ["d0", "d1", "d2"], "intents": ["i0", "i1", "i2"]}
    path = folder / "clinc150.json"
    path.write_text(json.dumps(dict.fromkeys(("train", "val", "test"), rows) | names))
    return path


OWN: dict[str, Callable[[Path], Path]] = {
    "npz": write_npz,
    "image_folder": write_folder,
    "npz_signals": write_signals,
    "npz_vectors": write_vectors,
    "csv": write_csv,
    "audio_folder": write_audio,
    "fsdd": write_speech,
    "fsdd_logmel": write_speech,
    "npz_pairs": write_pairs,
    "written_and_spoken": write_speech,
    "clinc150": write_queries,
    "csv_text": write_texts,
    "npz_texts": write_numbers,
}
FEWER = {name: ["data.dataset.length=512"] for name in ("fsdd", "audio_folder")}
FEWER["npz_pairs"] = ["student=m5_tiny"]
FEWER["written_and_spoken"] = ["data.dataset.b.length=512"]
PAIRS = ("npz_pairs", "written_and_spoken")  # which nothing synthesizes


def small(*overrides: str) -> DictConfig:
    config = compose(["batch_size=4", "steps=2", *overrides])
    for key, value in SMALL.items():
        if OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, value)
    return config


def narrow(config: DictConfig) -> DictConfig:
    """With a smaller generator, where that is not what is tested."""
    config.generator.update({"channels": 8} if "channels" in config.generator else {})
    return config


def two_steps(config: DictConfig) -> None:
    """Of the loop, with an untrained teacher."""
    settings, runtime = plain(config), Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    teacher = None
    if settings["needs_teacher"]:
        teacher = freeze(blank_teacher(settings, dataset))
        runtime.prepare(teacher)
    settings = provisional(settings, dataset, teacher, runtime)
    parts = build_parts(settings, dataset, teacher, runtime)
    before = [p.detach().clone() for p in parts.student.parameters()]
    for step in range(2):
        parts.schedule.apply(step / 2)
        batch = parts.source.next()
        assert batch.input.shape == (4, *dataset.shape)
        losses = parts.distiller(batch)
        assert losses.total.isfinite()
        losses.total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.source.learned(batch, losses)
    pairs = zip(before, parts.student.parameters(), strict=True)
    assert any(not torch.equal(was, now) for was, now in pairs)
    assert all(p.isfinite().all() for p in parts.student.parameters())


@pytest.mark.parametrize("method", ["scratch", "reverie"])
@pytest.mark.parametrize("name", sorted({*choices("data")} - {"none"}))  # see test_no_data.py
def test_data(name: str, method: str, tmp_path: Path) -> None:
    """By its own recipe, and without its training split; with its own pair of networks."""
    path = [f"data.path={OWN[name](tmp_path)}"] if name in OWN else []
    path += FEWER.get(name, [])
    config = narrow(small(f"data={name}", f"method={method}", *path))
    if method == "reverie" and name in PAIRS:
        config.run_root = str(tmp_path / "runs")
        with pytest.raises(ValueError, match="are pairs, which nothing synthesizes"):
            run(config, Runtime("cpu"))
        return
    two_steps(config)


@pytest.mark.parametrize("name", choices("generator"))
def test_generator(name: str) -> None:
    two_steps(small(f"generator={name}", "method=dfq"))


BESIDE = {  # what an experiment needs beside its name, or with the few inputs of these tests
    "digits_to_edges_vit_without_data": ["~synthesis.losses.bn"],
    "luminance_to_chroma": ["source.labels=8"],
    "spoken_to_logmel_without_data": ["data.dataset.length=2048"],  # it shifts by up to 1500
}


@pytest.mark.parametrize("name", choices("experiment"))
def test_experiment(name: str, tmp_path: Path) -> None:
    data = compose([f"experiment={name}"]).choices.data
    path = [f"data.path={OWN[data](tmp_path)}"] if data in OWN else []
    config = narrow(small(f"experiment={name}", *path, *FEWER.get(data, []), *BESIDE.get(name, [])))
    networks = (config.teacher.model._target_, config.student.model._target_)
    if config.data.size is not None and not any("lenet" in n for n in networks):
        config.data.size = 8  # LeNet-5 takes 32 x 32 only
    two_steps(config)


@pytest.mark.parametrize("student", ["mobilenetv2_half", "shufflenetv1", "shufflenetv2"])
def test_light_students_take_every_loss_of_the_tables(student: str) -> None:
    """Whose stages differ from their teachers' in number, size and channels."""
    losses = "loss=[at,rkd,crd,dkd,reviewkd]"
    pair = ["teacher=resnet8x4", f"student={student}", "optimizer.lr=0.01"]
    config = small("experiment=cifar100_crd", *pair, losses)
    config.data.size = 16
    two_steps(config)


@pytest.mark.parametrize("method", ["nayer", "zskd", "spaceshipnet", "mosaickd", "cpsc"])
def test_cifar_experiments_fit_a_hundred_classes(method: str) -> None:
    """Those whose parts know the classes or the data, as the row of docs/results.md has them."""
    rows = [
        row for table in read_tables(ROOT.parent / "benchmarks" / "tables") for row in table["rows"]
    ]
    [row] = [r for r in rows if r["name"] == f"gpu-cifar100-wrn_40_2-wrn_16_1-{method}"]
    config = narrow(small(*row["overrides"]))
    config.data.size = 16
    assert len(config.data.dataset.classes) == 100
    two_steps(config)
