"""Splits, scaling, counting, the held-out validation split, and the data-free guard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.runtime import Runtime
from data.dataset import DataFreeError, Dataset, Split
from data.spec import InputSpec


def ramp(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Image i is filled with i, so that a row can be told from its pixels."""
    values = np.arange(count, dtype=np.uint8)
    return np.tile(values[:, None, None], (1, 4, 4)), np.arange(count) % 3


def dataset(runtime: Runtime, **options: Any) -> Dataset:
    readers = {"train": lambda: ramp(100), "test": lambda: ramp(12)}
    return Dataset("ramp", readers, ["a", "b", "c"], runtime, **options)


def values(split: Split) -> set[int]:
    return {round(float(image.mean()) * 255) for x, _ in split.batches(7) for image in x}


def test_nothing_is_read_before_it_is_opened(runtime: Runtime) -> None:
    def refuse() -> Any:
        raise AssertionError("read")

    data = Dataset("x", {"train": refuse, "test": lambda: ramp(12)}, ["a", "b", "c"], runtime)
    assert data.shape == (1, 4, 4)
    data.check(InputSpec((1, 4, 4)), 3)
    with pytest.raises(AssertionError, match="read"):
        data.open("train")


def test_batches_are_scaled_to_the_range(runtime: Runtime) -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    split = Split(images, torch.arange(3), runtime.device, range=(-1.0, 1.0))
    x, labels = split.batch(torch.tensor([2, 0, 1]))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.flatten(), torch.tensor([1.0, -1.0, -0.6]))
    assert labels.tolist() == [2, 0, 1]
    assert images.flatten().tolist() == [0, 51, 255]


def test_evaluation_goes_through_every_row_once_in_order(runtime: Runtime) -> None:
    split = dataset(runtime).open("test")
    batches = list(split.batches(5))
    assert [len(y) for _, y in batches] == [5, 5, 2]
    rows = torch.cat([x for x, _ in batches])[:, 0, 0, 0] * 255
    assert rows.round().tolist() == list(range(12))


def test_training_rows_are_counted_where_they_are_handed_out(runtime: Runtime) -> None:
    data = dataset(runtime, val_fraction=0.1)
    data.open("test").batch(slice(0, 9))
    assert data.real_training_inputs_read == 0
    data.open("train").batch(torch.arange(7))
    assert data.real_training_inputs_read == 7
    data.open("val").batch(slice(0, 4))
    assert data.real_training_inputs_read == 11


def test_validation_is_held_out_of_training(runtime: Runtime) -> None:
    data = dataset(runtime, val_fraction=0.15)
    train, val = values(data.open("train")), values(data.open("val"))
    assert (len(train), len(val)) == (85, 15)
    assert train | val == set(range(100))
    assert values(dataset(runtime, val_fraction=0.15).open("val")) == val
    assert val != set(range(15))


def test_no_validation_split_without_a_fraction(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match=r"data\.val_fraction=0\.1"):
        dataset(runtime).open("val")
    with pytest.raises(ValueError, match="val_fraction must be"):
        dataset(runtime, val_fraction=1.0)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_sides_of_the_hold_out_have_inputs(runtime: Runtime, fraction: float) -> None:
    data = dataset(runtime, val_fraction=fraction)
    for which in ("train", "val"):
        with pytest.raises(ValueError, match=r"holds out \d+ of 100 training inputs"):
            data.open(which)


@pytest.mark.parametrize("size", [0, -4])
def test_images_have_a_size(runtime: Runtime, size: int) -> None:
    with pytest.raises(ValueError, match=r"data\.size must be at least 1"):
        dataset(runtime, size=size)


@pytest.mark.parametrize("which", ["train", "val"])
def test_closed_training_data_cannot_be_opened(runtime: Runtime, which: str) -> None:
    data = dataset(runtime, val_fraction=0.5)
    data.close_training()
    with pytest.raises(DataFreeError, match="method=kd"):
        data.open(which)
    assert len(data.open("test")) == 12
    assert data.real_training_inputs_read == 0


def test_a_split_that_somebody_kept_is_closed_too(runtime: Runtime) -> None:
    data = dataset(runtime)
    split = data.open("train")
    split.batch(slice(0, 3))
    data.close_training()
    with pytest.raises(DataFreeError):
        split.batch(slice(0, 3))
    with pytest.raises(DataFreeError):
        split.moments()


def test_no_mean_is_computed_from_closed_training_data(runtime: Runtime) -> None:
    data = dataset(runtime)
    data.close_training()
    with pytest.raises(DataFreeError):
        _ = data.spec


def test_an_unreadable_training_split_is_never_touched(
    runtime: Runtime, write: Callable[..., Path]
) -> None:
    """Every byte of the training arrays is destroyed; a data-free run does not notice."""
    import zipfile

    from data.files import npz

    path = write()
    with zipfile.ZipFile(path) as archive:
        spans = {i.filename: (i.header_offset + 60, i.compress_size) for i in archive.infolist()}
    content = bytearray(path.read_bytes())
    for key in ("train_images.npy", "train_labels.npy"):
        start, length = spans[key]
        content[start : start + length - 30] = b"\xff" * (length - 30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"small\.npz is"):
        npz(str(path), runtime).open("train")
    data = npz(str(path), runtime)
    data.close_training()
    data.check(InputSpec((3, 6, 6), mean=(0,) * 3, std=(1,) * 3), 3)
    assert len(data.open("test")) == 9
    with pytest.raises(DataFreeError):
        data.open("train")


def test_mean_and_std_are_computed_from_the_training_split(runtime: Runtime) -> None:
    pixels = torch.arange(100) / 255
    spec = dataset(runtime, size=8).spec  # padding makes three quarters of each image black
    padded = torch.cat([pixels, torch.zeros(300)])
    assert spec.mean == pytest.approx([padded.mean().item()])
    assert spec.std == pytest.approx([padded.std(correction=0).item()])
    given = dataset(runtime, mean=[0.5], std=[0.25])
    assert given.spec == InputSpec((1, 4, 4), (0.0, 1.0), (0.5,), (0.25,))
    assert given.real_training_inputs_read == 0
    with pytest.raises(ValueError, match=r"data\.dataset\.std"):
        dataset(runtime, mean=[0.5])


def test_a_constant_channel_has_no_scale(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alpha of 255, or of next to nothing else: zeros that pad it must not become huge."""
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 4), dtype=np.uint8)
    images[..., 3] = 255
    images[0, 0, 0, 3] = 254
    plain = Dataset(
        "rgb", dict.fromkeys(("train", "test"), lambda: (images[..., :3], LABELS)), "ab", runtime
    )
    data = Dataset(
        "rgba", dict.fromkeys(("train", "test"), lambda: (images, LABELS)), "ab", runtime
    )
    assert data.spec.std == (*plain.spec.std, 1.0)
    assert data.spec.normalize(torch.zeros(1, 4, 4, 4)).abs().max() < 2
    [line] = capsys.readouterr().out.splitlines()
    assert "data rgba: channel 4 of 4 is all but constant" in line


LABELS = np.arange(50) % 2


def test_what_a_reader_gives_is_checked(runtime: Runtime) -> None:
    """Of built-in sets too, whose files may not be those that their names promise."""
    images, labels = ramp(12)
    for given, said in [
        ((images, labels[:5]), "one label for each image"),
        ((images / 255, labels), "test_images is float64"),
        ((images, labels + 1), "test_labels go up to 3, but there are 3 classes"),
        ((images, labels - 1), "negative"),
    ]:
        data = Dataset("wrong", {"test": lambda given=given: given}, list("abc"), runtime)
        with pytest.raises(ValueError, match=said):
            data.open("test")


def test_splits_of_different_shapes(runtime: Runtime) -> None:
    """Which a size would hide; a data-free run, that has the test split alone, reads no other."""
    images, labels = ramp(12)
    readers = {"train": lambda: (images[:, :3], labels), "test": lambda: (images, labels)}
    data = Dataset("mixed", readers, list("abc"), runtime, size=8)
    data.open("test")
    with pytest.raises(ValueError, match=r"test are 1x4x4, but those of train 1x3x4"):
        data.open("train")
    data.close_training()
    assert data.shape == (1, 8, 8)


def test_a_size_that_no_machine_has(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match=r"12 test images .* would take 11,\d+.\d GiB, but"):
        dataset(runtime, size=10**6).open("test")
    with pytest.raises(ValueError, match=r"would take more than 2\^50 GiB, but"):
        dataset(runtime, size=10**400).open("test")

    def exhausted() -> Any:
        raise MemoryError

    with pytest.raises(ValueError, match="the test images of data x do not fit into memory"):
        Dataset("x", {"test": exhausted}, ["a"], runtime).open("test")


def test_a_teacher_that_does_not_fit_is_refused(runtime: Runtime) -> None:
    data = dataset(runtime)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(1, 4, 4\).*data\.size=8"):
        data.check(InputSpec((1, 8, 8)), 3)
    with pytest.raises(ValueError, match="choose other data"):
        data.check(InputSpec((3, 4, 4), mean=(0,) * 3, std=(1,) * 3), 3)
    with pytest.raises(ValueError, match=r"10 classes.*has 3"):
        data.check(InputSpec((1, 4, 4)), 10)


def test_a_teacher_of_another_sample_rate_is_refused(runtime: Runtime) -> None:
    reader = {"test": lambda: (np.ones((2, 8), np.int16), np.arange(2))}
    data = Dataset("heard", reader, ["a", "b"], runtime, modality="signal", rate=16000.0)
    data.check(InputSpec((1, 8), (-1.0, 1.0), rate=16000.0), 2)
    data.check(InputSpec((1, 8), (-1.0, 1.0)), 2)  # its rate is not known
    with pytest.raises(ValueError, match=r"of 8000 samples in a second, .* have 16000: re"):
        data.check(InputSpec((1, 8), (-1.0, 1.0), rate=8000.0), 2)
    with pytest.raises(ValueError, match=r"data\.dataset\.length=16 \(or, .* data\.size=16\)"):
        data.check(InputSpec((1, 16), (-1.0, 1.0), rate=16000.0), 2)


def test_values_are_delivered_in_a_teachers_range(runtime: Runtime) -> None:
    data = dataset(runtime)
    before = data.open("test")
    data.adapt(InputSpec((1, 4, 4), (0.0, 255.0)), 3)
    for split in (before, data.open("train")):
        torch.testing.assert_close(split.batch(slice(3, 4))[0], torch.full((1, 1, 4, 4), 3.0))
