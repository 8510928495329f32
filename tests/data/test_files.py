"""A user's own files: what is read, and one line for everything that can be wrong with them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.runtime import Runtime
from data.files import npz

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


@pytest.mark.parametrize("stray", [10**9, 255, 3])
def test_an_uncertain_number_of_classes(write: Write, runtime: Runtime, stray: int) -> None:
    """From 1 on, a stray -1 that is 255 in uint8, or a class without test images."""
    labels = np.array([0, 1, 2, 1, 2, 1, 2, 1, stray]) if stray > 3 else np.arange(9) % 3 + 1
    path = str(write(classes=None, test_labels=labels))
    with pytest.raises(ValueError, match=rf"go up to {stray}, but only \d labels.*classes=\["):
        npz(path, runtime)


def test_a_class_without_images_is_named(
    write: Write, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(train_labels=np.zeros(20, int))
    for _ in range(2):
        npz(str(path), runtime).open("train")
    assert capsys.readouterr().out.splitlines() == [
        f"data {path}: train has no image of the class(es) green, blue"
    ]


IMAGES = np.zeros((20, 6, 6, 3), np.uint8)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"test_images": None}, "lacks test_images"),
    ({"train_images": None}, "has no training split"),
    ({"train_labels": None}, "train has no labels, which training needs"),
    ({"train_images": IMAGES.astype(np.float32)}, "float32; uint8"),
    ({"train_images": IMAGES[0, 0]}, "shape (6, 3)"),
    ({"train_images": IMAGES[:, :, None]}, "shape (20, 6, 1, 6, 3)"),
    ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, "save images.transpose(0, 2, 3, 1)"),
    ({"train_images": IMAGES.astype(np.uint16)}, "(images / 257).round()"),
    ({"train_images": IMAGES > 0}, "bool; uint8"),
    ({"train_images": IMAGES.astype(">i8")}, "images.astype(numpy.uint8)"),
    ({"test_images": np.zeros((9, 6, 5, 3), np.uint8)}, "train are 3x6x6, but those of test 3x6x5"),
    ({"train_images": IMAGES[..., 0]}, "train are 1x6x6, but those of test 3x6x6"),
    ({"train_images": IMAGES[:5]}, "one label for each image"),
    ({"train_labels": np.zeros(20)}, "integers of shape"),
    ({"train_labels": np.zeros((20, 14), int)}, "labels.argmax(1)"),
    ({"train_labels": np.arange(20.0)}, "labels.astype(numpy.int64)"),
    ({"train_labels": np.full(20, 10**9)}, "go up to 1000000000"),
    ({"train_labels": np.full(20, 2**64 - 1, np.uint64)}, "go up to 18446744073709551615"),
    ({"train_labels": np.full(20, 3)}, "data.dataset.classes"),
    ({"train_labels": np.full(20, -1)}, "negative"),
    ({"test_labels": np.zeros(0, int)}, "is empty"),
    ({"train_labels": np.array([{}] * 20)}, "never unpickled"),
    ({"classes": np.arange(3)}, "list of strings"),
    ({"classes": np.array("red")}, "list of strings"),
    ({"classes": np.array(["red", "red", "blue"])}, "more than one class called 'red'"),
    ({"classes": np.array(["\u00e9", "e\u0301", "b"])}, "more than one class called 'é'"),
    ({"classes": np.array(["red", " ", "blue"])}, "name of class 1 is empty"),
    ({"classes": np.array(["red", "\udce9", "b"])}, "not UTF-8"),
    ({"classes": np.array(["red", "green"])}, "there are 2 classes"),
    ({"classes": np.array([], "U3")}, "has no classes"),
    ({"val_images": IMAGES}, "val has no labels, which training needs"),
]


def open_all(path: Path, runtime: Runtime) -> None:
    data = npz(str(path), runtime)
    for which in ("train", "test", "val"):
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
