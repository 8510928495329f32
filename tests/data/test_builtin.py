"""The embedded digits' fixed split, and torchvision's data sets without a network."""

import gzip
import shutil
import socket
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from data.builtin import digits, torchvision_dataset
from data.dataset import DataFreeError
from engine.runtime import Runtime

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "data"
NAMES = [str(i) for i in range(10)]
FIRST_TEST_LABELS = [5, 9, 2, 4, 6, 7, 9, 3, 4, 6, 8, 5, 0, 2, 1, 7, 3, 9, 9, 2]
TEST_CHECKSUM = 884250630


def stated(name: str, key: str) -> list[float]:
    return list(OmegaConf.load(CONFIGS / f"{name}.yaml").dataset[key])


def test_digits_split(runtime: Runtime) -> None:
    data = digits(runtime)
    train, test = data.open("train"), data.open("test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.shape == test.shape == (1, 8, 8)
    x, y = train.batch(slice(0, 1437))
    z, w = test.batch(slice(0, 360))
    assert w.bincount().tolist() == [36] * 10
    assert y.bincount().tolist() == [142, 146, 141, 147, 145, 146, 145, 143, 138, 144]
    assert (x.min(), x.max()) == (0, 1)
    pictures = [{tuple(image.flatten().tolist()) for image in images} for images in (x, z)]
    assert not pictures[0] & pictures[1]
    assert data.classes == tuple(NAMES)


def test_digits_split_stays_the_same_for_good(runtime: Runtime) -> None:
    """Published numbers depend on these very rows; numpy might change its generator."""
    _, labels = digits(runtime).open("test").batch(slice(0, 20))
    assert labels.tolist() == FIRST_TEST_LABELS
    x, _ = digits(runtime).open("test").batch(slice(0, 360))
    weights = torch.arange(360 * 64).view(360, 1, 8, 8) % 997
    assert int(((x * 255).round().long() * weights).sum()) == TEST_CHECKSUM


def test_digits_stated_moments(runtime: Runtime) -> None:
    mean, std = digits(runtime).open("train").moments()
    assert mean == pytest.approx(stated("digits", "mean"), abs=1e-4)
    assert std == pytest.approx(stated("digits", "std"), abs=1e-4)


@pytest.fixture
def mnist(shared: Path, tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (shared / "data" / "MNIST" / "raw").glob("*.gz"):
        with gzip.open(packed) as source, open(raw / packed.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    return tmp_path


def test_mnist(mnist: Path, runtime: Runtime) -> None:
    data = torchvision_dataset("MNIST", str(mnist), NAMES, runtime, size=32)
    train, test = data.open("train"), data.open("test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert data.shape == (1, 32, 32)
    mean, std = train.moments()
    assert mean == pytest.approx(stated("mnist", "mean"), abs=1e-3)
    assert std == pytest.approx(stated("mnist", "std"), abs=1e-3)


def test_mnist_without_its_training_data(mnist: Path, runtime: Runtime) -> None:
    for file in (mnist / "MNIST" / "raw").glob("train-*"):
        file.write_bytes(b"not data")
    data = torchvision_dataset("MNIST", str(mnist), NAMES, runtime, size=32)
    data.close_training()
    assert len(data.open("test")) == 10_000
    with pytest.raises(DataFreeError):
        data.open("train")


def test_damaged_files(mnist: Path, runtime: Runtime) -> None:
    images = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot read the test split of MNIST"):
        torchvision_dataset("MNIST", str(mnist), NAMES, runtime).open("test")


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "CIFAR10"])
def test_without_files_and_network(
    name: str, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    data = torchvision_dataset(name, str(tmp_path / "root"), NAMES, runtime)
    message = r"cannot download.*no network.*data\.root.*data=npz data\.path"  # in one line
    with pytest.raises(ValueError, match=message):
        data.open("test")
