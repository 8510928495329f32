"""A folder of images by class: which are read, what is left out, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.runtime import Runtime
from data.files import image_folder


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
    with pytest.raises(ValueError, match="needs the folder test"):
        image_folder(str(folder / "train"), runtime)
    with pytest.raises(ValueError, match=r"channels must be 1"):
        image_folder(str(folder), runtime, channels=2)
    with pytest.raises(ValueError, match=r"different sizes: set data\.size"):
        image_folder(str(folder), runtime, size=None).open("train")
    (folder / "train" / "bird").mkdir()
    with pytest.raises(ValueError, match="class folders: bird"):
        image_folder(str(folder), runtime).open("train")


@pytest.mark.parametrize("kind", ["empty", "gif", "nested"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_of_which_no_image_is_read(
    kind: str, split: str, folder: Path, runtime: Runtime
) -> None:
    for image in (folder / split / "dog").iterdir():
        image.unlink()
    said = {"empty": "nothing is in it", "gif": "2 .gif", "nested": "1 folder"}[kind]
    if kind == "gif":
        for i in range(2):
            draw(folder / split / "dog" / f"{i}.gif", 9)
    elif kind == "nested":
        draw(folder / split / "dog" / "puppies" / "0.png", 9)
    data = image_folder(str(folder), runtime)
    with pytest.raises(ValueError, match=rf"{split}/dog: no image of this class is read \({said}"):
        data.open("train" if split == "train" else "test")


def test_what_is_left_out_is_said_once(
    folder: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(folder / "train" / "dog" / "x.gif", 9)
    draw(folder / "train" / "stray.png", 9)
    draw(folder / "train" / "cat" / "more" / "x.png", 9)
    for _ in range(2):
        data = image_folder(str(folder), runtime)
        assert (len(data.open("train")), len(data.open("test"))) == (6, 2)
    [line] = capsys.readouterr().out.splitlines()
    assert f"{folder / 'train'}: 4 are left out, as they are not images" in line
    assert all(kind in line for kind in ("1 .png", "1 .txt", "1 folder", "1 .gif"))


def test_names_that_differ_in_their_unicode_form(folder: Path, runtime: Runtime) -> None:
    """As copied from a Mac, whose tools decompose letters."""
    draw(folder / "train" / "e\u0301le\u0300ve" / "0.png", 10)
    draw(folder / "val" / "\u00e9l\u00e8ve" / "0.png", 90)
    data = image_folder(str(folder), runtime)
    assert data.classes == ("cat", "dog", "\u00e9l\u00e8ve")
    assert [data.open(which).labels[-1] for which in ("train", "test")] == [2, 2]
    draw(folder / "val" / "e\u0301l\u00e8ve" / "0.png", 90)
    with pytest.raises(ValueError, match="two class folders 'élève'"):
        image_folder(str(folder), runtime)


@pytest.mark.parametrize("place", ["val/bird", "val/cat/9.png"])
def test_links_that_lead_nowhere(place: str, folder: Path, runtime: Runtime) -> None:
    link = folder / place
    for target in (folder / "absent", link):  # the second one is a loop
        link.symlink_to(target)
        with pytest.raises(ValueError, match=rf"{place} is a broken link"):
            image_folder(str(folder), runtime).open("test")
        link.unlink()


def test_a_folder_that_holds_itself_and_a_pipe(folder: Path, runtime: Runtime) -> None:
    (folder / "train" / "cat" / "up").symlink_to(folder / "train")
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    assert len(image_folder(str(folder), runtime).open("train")) == 6
    for which in ("train", "val"):
        (folder / which / "up").symlink_to(folder / which)
    with pytest.raises(ValueError, match=r"up: no image of this class"):
        image_folder(str(folder), runtime).open("test")


def test_a_size_that_no_machine_has(folder: Path, runtime: Runtime) -> None:
    data = image_folder(str(folder), runtime, size=10**6)
    with pytest.raises(ValueError, match=r"the 2 images of .*val would take 5,\d+.\d GiB.*size"):
        data.open("test")


def test_a_folder_without_class_folders(tmp_path: Path, runtime: Runtime) -> None:
    for which in ("train", "test"):
        draw(tmp_path / which / "0.png", 9)
    with pytest.raises(ValueError, match="neither labels nor names of classes"):
        image_folder(str(tmp_path), runtime)


def test_images_of_every_mode_in_one_folder(folder: Path, runtime: Runtime) -> None:
    deep = np.full((8, 8), 50 * 257, np.uint16)
    for i, mode in enumerate(("RGB", "L", "P", "1", "CMYK", "LA", "RGBA")):
        Image.new("RGB", (8, 8), (255,) * 3).convert(mode).save(folder / f"train/dog/w{i}.tif")
    Image.fromarray(deep).save(folder / "train" / "dog" / "z.png")
    split = image_folder(str(folder), runtime, size=8, channels=3).open("train")
    x, _ = split.batch(slice(6, 14))
    assert (x[:7] == 1).all()
    assert (x[7] * 255).round().unique().tolist() == [50]
