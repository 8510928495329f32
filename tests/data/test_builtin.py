"""The embedded digits' fixed split, and torchvision's data sets without a network."""

import gzip
import shutil
import socket
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from core.runtime import Runtime
from data.builtin import MOMENTS, digits, torchvision_dataset
from data.dataset import DataFreeError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "data"
NAMES = [str(i) for i in range(10)]
FIRST_TEST_LABELS = [5, 9, 2, 4, 6, 7, 9, 3, 4, 6, 8, 5, 0, 2, 1, 7, 3, 9, 9, 2]
TEST_CHECKSUM = 884250630


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
    assert mean == pytest.approx(MOMENTS["digits", None][0], abs=1e-4)
    assert std == pytest.approx(MOMENTS["digits", None][1], abs=1e-4)


def test_stated_moments_are_used_at_their_own_size_only(runtime: Runtime) -> None:
    spec = digits(runtime).spec
    assert (spec.mean, spec.std) == MOMENTS["digits", None]
    padded = digits(runtime, size=16)  # three quarters of it are zeros
    assert (padded.spec.mean, padded.spec.std) == padded.open("train").moments()
    assert padded.spec.mean[0] == pytest.approx(spec.mean[0] / 4, abs=1e-4)
    given = digits(runtime, size=16, mean=[0.5], std=[0.25]).spec
    assert (given.mean, given.std) == ((0.5,), (0.25,))
    with pytest.raises(ValueError, match=r"both data\.dataset\.mean and data\.dataset\.std"):
        digits(runtime, mean=[0.5])


@pytest.mark.parametrize("name", sorted({name for name, _ in MOMENTS}))
def test_the_configured_size_has_stated_moments(name: str) -> None:
    """So that no published run depends on how sums are rounded."""
    files = [OmegaConf.load(path) for path in CONFIGS.glob("*.yaml")]
    named = {d.dataset.get("name", d.dataset._target_.rpartition(".")[2]): d for d in files}
    data = named[name]
    assert (name, data.size) in MOMENTS
    assert data.dataset.mean is None


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
    assert mean == pytest.approx(MOMENTS["MNIST", 32][0], abs=1e-3)
    assert std == pytest.approx(MOMENTS["MNIST", 32][1], abs=1e-3)


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
