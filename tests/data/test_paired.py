"""Two inputs as one: pairs of rows, and pairs that share their class only."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.runtime import Runtime
from data.dataset import DataFreeError, Dataset
from data.modality import modality_named
from data.pair import LARGEST, Pair, pair_of, plain_spec
from data.paired import Pairs, by_class, npz_pairs
from data.spec import InputSpec
from data.transforms import Edges, Part
from models.checkpoint import load_weights, read_metadata, save_network, taken
from models.classifier import Classifier
from models.digits import DigitsCNN

IMAGE, SIGNAL = plain_spec("image", (2, 4, 3)), plain_spec("signal", (1, 10), 8000.0)
RUNTIME = Runtime("cpu")
CLASSES = ["x", "y", "z"]


@pytest.fixture
def pair() -> Pair:
    return pair_of(IMAGE, SIGNAL)


def arrays(rows: int = 12) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for which in ("train", "test"):
        found[f"{which}_inputs_a"] = draw.integers(0, 256, (rows, 5, 4, 3), dtype=np.uint8)
        found[f"{which}_inputs_b"] = draw.integers(-9999, 9999, (rows, 20), dtype=np.int16)
        found[f"{which}_labels"] = np.arange(rows) % 3
    return found


def written(folder: Path, **changed: Any) -> Path:
    """A file of pairs; None leaves an array out."""
    kept = {n: x for n, x in (arrays() | {"rate": 8000} | changed).items() if x is not None}
    np.savez(folder / "pairs.npz", **kept)
    return folder / "pairs.npz"


def test_a_name_says_what_a_pair_holds(pair: Pair) -> None:
    assert pair.name == "image[2,4,3]+signal[1,10]@8000"
    assert modality_named(pair.name) is pair
    spec = InputSpec(pair.pair_shape, modality=pair.name)
    assert InputSpec(**spec.to_dict()).kind is pair
    for wrong in ("image[2,4,3]", "image[2]+signal[1,9]", "song[1,2]+image[1,2,3]", "image[2,4]+"):
        with pytest.raises(ValueError, match=r"\[C, H, W\]|there is no modality"):
            modality_named(wrong)


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 3.0)])
def test_the_parts_of_a_pair_are_what_was_joined(pair: Pair, limits: tuple[float, float]) -> None:
    a, b = torch.rand(6, 2, 4, 3), torch.rand(6, 1, 10) * 2 - 1
    joined = pair.join(a, b)
    assert joined.shape == (6, 1, 34)
    assert joined.min() >= 0
    assert joined.max() <= 1
    low, high = limits
    shown = joined * (high - low) + low
    spec = InputSpec(pair.pair_shape, limits, modality=pair.name)
    torch.testing.assert_close(Part(spec, "a")(shown), a)
    torch.testing.assert_close(Part(spec, "b")(shown), b)


def test_a_part_is_an_input_of_its_own_modality(pair: Pair) -> None:
    spec = InputSpec(pair.pair_shape, modality=pair.name)
    x = pair.join(torch.rand(9, 2, 4, 3), torch.rand(9, 1, 10) * 2 - 1)
    heard = Part(spec, "b").measured(spec, x)
    assert (heard.modality, heard.shape, heard.rate) == ("signal", (1, 10), 8000)
    assert heard.range == (-1.0, 1.0)
    torch.testing.assert_close(torch.tensor(heard.mean), pair.part(x, "b", (0, 1)).mean((0, 2)))
    edges = Part(spec, "a", functools.partial(Edges, smooth=0.1))
    torch.testing.assert_close(edges(x), Edges(IMAGE, smooth=0.1)(pair.part(x, "a", (0.0, 1.0))))
    assert edges.measured(spec, x).shape == (2, 4, 3)
    with pytest.raises(ValueError, match="choose data of pairs"):
        Part(IMAGE, "a")


def test_a_pair_is_shown_and_heard(pair: Pair) -> None:
    spec = InputSpec(pair.pair_shape, modality=pair.name, rate=8000.0)
    x = pair.join(torch.rand(70, 2, 4, 3), torch.rand(70, 1, 10) * 2 - 1)
    page = pair.picture(x, spec)
    assert page.dim() == 3
    assert max(page.shape) <= LARGEST
    assert 0 <= page.min() < page.max() <= 1
    heard = pair.sound(x, spec)
    assert heard is not None
    torch.testing.assert_close(heard[0, :10], pair.part(x, "b", (0, 1))[0, 0])


def test_a_file_says_of_which_pairs_a_network_sees_a_part(pair: Pair, tmp_path: Path) -> None:
    spec = InputSpec(pair.pair_shape, modality=pair.name, rate=8000.0)
    part = Part(spec, "a")
    network = Classifier(DigitsCNN(2, 3, 4), IMAGE, CLASSES, transform=part, takes=spec)
    save_network(tmp_path / "a.safetensors", network, {})
    metadata = load_weights(tmp_path / "a.safetensors")[1]
    assert taken(metadata, tmp_path) == spec
    assert read_metadata(metadata, tmp_path)[0] == IMAGE


def test_rows_of_a_file_are_pairs(tmp_path: Path) -> None:
    data = npz_pairs(written(tmp_path), RUNTIME, val_fraction=0.25)
    assert data.kind.name == "image[3,5,4]+signal[1,20]@8000"
    assert data.classes == ("0", "1", "2")
    known = arrays()
    for which, count in (("test", 12), ("train", 9), ("val", 3)):
        split = data.open(which)
        assert len(split) == count
        x, label = split.batch(torch.arange(count))
        assert label is not None
        a = data.kind.part(x, "a", data.range)  # type: ignore[attr-defined]
        b = data.kind.part(x, "b", data.range)  # type: ignore[attr-defined]
        if which == "test":
            torch.testing.assert_close(
                a, torch.from_numpy(known["test_inputs_a"]).permute(0, 3, 1, 2) / 255
            )
            torch.testing.assert_close(b[:, 0], torch.from_numpy(known["test_inputs_b"]) / 32768)
            assert label.tolist() == known["test_labels"].tolist()
    assert data.real_training_inputs_read == 12
    data.close_training()
    with pytest.raises(DataFreeError):
        data.open("train")
    with pytest.raises(DataFreeError):
        data.parts[0].open("train")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"test_inputs_b": None}, "lacks test_inputs_b"),
        ({"train_inputs_a": None}, "lacks train_inputs_a"),
        ({"train_labels": None}, "lacks train_labels"),
        ({"train_inputs_b": np.zeros((11, 20), np.int16)}, "train_inputs_b has 11|_b 11:"),
        ({"test_inputs_a": np.zeros((13, 5, 4), np.uint8)}, "test_inputs_a has 13 rows"),
        ({"test_inputs_b": np.zeros((12, 20), np.complex64)}, "test_inputs_b is complex64"),
        ({"test_inputs_b": np.zeros((12, 4, 4, 4, 4), np.float32)}, "test_inputs_b is float32"),
        ({"train_inputs_b": np.zeros((12, 21), np.int16)}, "inputs_b: signals of test are 1x20"),
    ],
)
def test_what_does_not_belong_together_is_named(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        npz_pairs(written(tmp_path, **changed), RUNTIME).open("train")
    assert "\n" not in str(caught.value)


def test_kinds_that_are_given(tmp_path: Path) -> None:
    floats = np.random.default_rng(0).uniform(-1, 1, (12, 20))
    file = written(tmp_path, train_inputs_b=floats, test_inputs_b=floats)
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):  # told to be vectors
        npz_pairs(file, RUNTIME)
    assert npz_pairs(file, RUNTIME, ["image", "signal"]).kind.name.endswith("signal[1,20]@8000")
    for wrong in (["image"], ["image", "song"]):
        with pytest.raises(ValueError, match="kinds"):
            npz_pairs(file, RUNTIME, wrong)


def of_classes(name: str, counts: list[int], mark: int) -> Dataset:
    """Images whose value is ten times their class, plus their turn in it."""
    labels = np.repeat(np.arange(3), counts)
    turns = np.concatenate([np.arange(n) for n in counts])
    images = (mark + 10 * labels + turns).astype(np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    reader = lambda: (images, labels)  # noqa: E731
    return Dataset(name, {"train": reader, "test": reader}, CLASSES, RUNTIME)


def test_pairs_by_class_share_it_and_the_fewer_recur_evenly() -> None:
    data = by_class("both", of_classes("a", [6, 2, 4], 0), of_classes("b", [2, 4, 4], 100), RUNTIME)
    assert data.class_only
    split = data.open("train")
    x, label = split.batch(slice(0, len(split)))
    assert label is not None
    a = (data.kind.part(x, "a", data.range)[:, 0, 0, 0] * 255).round()  # type: ignore[attr-defined]
    b = (data.kind.part(x, "b", data.range)[:, 0, 0, 0] * 255).round() - 100  # type: ignore[attr-defined]
    assert torch.equal(a // 10, label.float())
    assert torch.equal(b // 10, label.float())
    assert label.bincount().tolist() == [6, 4, 4]
    assert a.unique(return_counts=True)[1].tolist() == [1] * 6 + [2] * 2 + [1] * 4
    assert b.unique(return_counts=True)[1].tolist() == [3] * 2 + [1] * 8


def test_what_cannot_be_paired_by_class() -> None:
    a, other = of_classes("a", [2, 2, 2], 0), of_classes("b", [2, 2, 0], 0)
    with pytest.raises(ValueError, match="b: test has nothing of the class z"):
        by_class("both", a, other, RUNTIME).open("test")
    other.classes = ("x", "y", "w")
    with pytest.raises(ValueError, match="x, y, z; x, y, w"):
        by_class("both", a, other, RUNTIME)
    with pytest.raises(ValueError, match="6 inputs of a, but 4 of b"):
        Pairs("both", a, of_classes("b", [2, 1, 1], 0), RUNTIME).open("test")
