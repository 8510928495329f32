"""A user's own files: what is read, and one line for everything that can be wrong with them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.files import image_folder, npz
from engine.runtime import Runtime

Write = Callable[..., Path]


def test_npz(write: Write, arrays: dict[str, Any], runtime: Runtime) -> None:
    data = npz(str(write()), runtime)
    assert data.classes == ("red", "green", "blue")
    assert data.shape == (3, 6, 6)
    x, y = data.open("train").batch(slice(0, 20))
    assert np.array_equal((x * 255).round().numpy().transpose(0, 2, 3, 1), arrays["train_images"])
    assert np.array_equal(y.numpy(), arrays["train_labels"])


def test_npz_in_medmnists_shapes(write: Write, arrays: dict[str, Any], runtime: Runtime) -> None:
    grey = {k: v[..., 0] for k, v in arrays.items() if k.endswith("images")}
    column = {k: v[:, None] for k, v in arrays.items() if k.endswith("labels")}
    path = write(**grey, **column, val_images=grey["test_images"][:4], val_labels=[[1]] * 4)
    data = npz(str(path), runtime, size=8)
    assert data.shape == (1, 8, 8)
    assert data.open("train").batch(slice(0, 3))[1].tolist() == [0, 1, 2]
    assert data.open("val").batch(slice(0, 9))[1].tolist() == [1] * 4
    assert len(npz(str(path), runtime, val_fraction=0.5).open("val")) == 10


def test_npz_without_names(write: Write, runtime: Runtime) -> None:
    path = str(write(classes=None))
    assert npz(path, runtime).classes == ("0", "1", "2")
    assert npz(path, runtime, classes=["a", "b", "c", "d"]).num_classes == 4


IMAGES = np.zeros((20, 6, 6, 3), np.uint8)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"train_images": None}, "lacks train_images"),
    ({"test_labels": None}, "lacks test_labels"),
    ({"train_images": IMAGES.astype(np.float32)}, "float32; uint8"),
    ({"train_images": IMAGES[0, 0]}, "shape (6, 3)"),
    ({"train_images": IMAGES[:, :, None]}, "shape (20, 6, 1, 6, 3)"),
    ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, "shape (20, 3, 6, 6)"),
    ({"train_images": IMAGES[:5]}, "one label for each image"),
    ({"train_labels": np.zeros(20)}, "integers of shape"),
    ({"train_labels": np.zeros((20, 14), int)}, "integers of shape"),
    ({"train_labels": np.full(20, 3)}, "data.dataset.classes"),
    ({"train_labels": np.full(20, -1)}, "negative"),
    ({"test_labels": np.zeros(0, int)}, "is empty"),
    ({"train_labels": np.array([{}] * 20)}, "never unpickled"),
    ({"classes": np.arange(3)}, "list of strings"),
    ({"val_images": IMAGES}, "lacks val_labels"),
]


def open_all(path: Path, runtime: Runtime) -> None:
    data = npz(str(path), runtime)
    for which in ("train", "val", "test"):
        data.open(which)


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[m for _, m in WRONG])
def test_npz_with_mistakes(
    write: Write, runtime: Runtime, changes: dict[str, Any], message: str
) -> None:
    path = write(**changes)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_all(path, runtime)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_that_is_none(write: Write, tmp_path: Path, runtime: Runtime) -> None:
    path = write()
    with pytest.raises(ValueError, match=r"set data\.path"):
        npz(None, runtime)
    with pytest.raises(ValueError, match="does not exist"):
        npz(str(tmp_path / "absent.npz"), runtime)
    with pytest.raises(ValueError, match="not a readable"):
        npz(str(tmp_path), runtime)
    np.save(tmp_path / "array.npy", IMAGES)
    for content in (b"", b"text", path.read_bytes()[:500], (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"small\.npz is"):
            npz(str(path), runtime)


def test_unpacked_cifar_layout(tmp_path: Path, runtime: Runtime) -> None:
    """As the usual converters write CIFAR-10: colour, uint8 labels, names in the file."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    labels = (np.arange(30) % 10).astype(np.uint8)
    names = np.array([f"class {i}" for i in range(10)])
    path = tmp_path / "cifar10.npz"
    np.savez(
        path,
        classes=names,
        train_images=images,
        train_labels=labels,
        test_images=images[:10],
        test_labels=labels[:10],
    )
    data = npz(str(path), runtime, size=32)
    assert (data.shape, data.num_classes) == ((3, 32, 32), 10)
    x, _ = data.open("test").batch(torch.tensor([4]))
    assert x[0, 1, 2, 3].item() == pytest.approx(images[4, 2, 3, 1] / 255)


def draw(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 1)):
        for i in range(count):
            draw(tmp_path / split / "cat" / f"{i}.png", 50, (10, 6))
            draw(tmp_path / split / "dog" / f"{i}.png", 200, mode="L")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_image_folder(folder: Path, runtime: Runtime) -> None:
    data = image_folder(str(folder), runtime, size=8)
    assert data.classes == ("cat", "dog")
    x, y = data.open("train").batch(slice(0, 6))
    assert x.shape == (6, 3, 8, 8)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    colours = (x[:, :, 4, 4] * 255).round()
    assert colours[0].tolist() == [50, 0, 0]
    assert colours[5].tolist() == [200, 200, 200]
    assert len(data.open("test")) == 2  # val stands in for test
    grey = image_folder(str(folder), runtime, size=8, channels=1)
    assert grey.shape == (1, 8, 8)


def test_image_folder_overlooks_what_is_hidden(folder: Path, runtime: Runtime) -> None:
    for split in ("train", "val"):
        draw(folder / split / "cat" / "._0.png", 90)
        draw(folder / split / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png", 90)
    draw(folder / "train" / ".ipynb_checkpoints" / "0.png", 90)
    data = image_folder(str(folder), runtime, size=8)
    assert data.classes == ("cat", "dog")
    assert (len(data.open("train")), len(data.open("test"))) == (6, 2)
    draw(folder / "val" / ".cache" / "0.png", 90)
    assert image_folder(str(folder), runtime, size=8).classes == ("cat", "dog")


def test_image_folder_with_both_val_and_test(folder: Path, runtime: Runtime) -> None:
    for name in ("cat", "dog"):
        for i in range(2):
            draw(folder / "test" / name / f"{i}.png", 9)
    data = image_folder(str(folder), runtime, size=8)
    assert (len(data.open("val")), len(data.open("test"))) == (2, 4)


def test_image_folder_reads_only_what_is_opened(folder: Path, runtime: Runtime) -> None:
    (folder / "train" / "cat" / "0.png").write_bytes(b"broken")
    data = image_folder(str(folder), runtime, size=8)
    data.close_training()
    assert len(data.open("test")) == 2
    with pytest.raises(ValueError, match=r"0\.png is not a readable image"):
        image_folder(str(folder), runtime, size=8).open("train")


def test_image_folder_with_mistakes(folder: Path, tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        image_folder(str(folder / "absent"), runtime)
    with pytest.raises(ValueError, match="needs the folders"):
        image_folder(str(folder / "train"), runtime)
    with pytest.raises(ValueError, match=r"channels must be 1"):
        image_folder(str(folder), runtime, channels=2)
    with pytest.raises(ValueError, match=r"different sizes: set data\.size"):
        image_folder(str(folder), runtime, size=None).open("train")
    (folder / "train" / "bird").mkdir()
    with pytest.raises(ValueError, match="class folders: bird"):
        image_folder(str(folder), runtime).open("train")
