"""Each modality reads, stores, fits and shows its inputs, and refuses others in a line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.runtime import Runtime
from data.augment import Kornia, RandomAffine, RandomCrop, RandomFlip
from data.dataset import Dataset
from data.modality import MODALITIES, Modality, modality_named, usual
from data.spec import InputSpec
from engine.config import compose, plain
from engine.parts import build_dataset

SIGNAL = InputSpec((1, 800), (-1.0, 1.0), (0.0,), (0.3,), rate=8000)
VECTOR = InputSpec((3,), (0.0, 1.0), (0.5,) * 3, (0.2,) * 3)
IMAGE = InputSpec((1, 8, 8), (0.0, 1.0), (0.5,), (0.2,))
SPECS = {"image": IMAGE, "signal": SIGNAL, "vector": VECTOR}


@pytest.mark.parametrize("kind", SPECS)
def test_the_number_of_axes_tells_the_modality(kind: str) -> None:
    spec = SPECS[kind]
    assert spec.modality == kind
    assert spec.kind is modality_named(kind)
    assert InputSpec(**spec.to_dict()) == spec
    assert "modality" not in spec.to_dict()  # so that files of images stay as they are
    with pytest.raises(ValueError, match="belong to no modality"):
        usual(5)
    with pytest.raises(ValueError, match=r"signals are \[C, L\], but the shape is \[3\]"):
        InputSpec((3,), mean=(0.0,) * 3, std=(1.0,) * 3, modality="signal")


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 1.0), (-2.0, 3.0)])
def test_what_is_stored_comes_back(kind: str, limits: tuple[float, float]) -> None:
    shape = SPECS[kind].shape
    spec = InputSpec(shape, limits, (0.1,) * shape[0], (0.5,) * shape[0])
    x = spec.noise(4, torch.device("cpu"))
    stored = spec.encode(x)
    assert stored.dtype == spec.kind.storage
    step = {"image": 1 / 255, "signal": 1 / 65536, "vector": 1e-6}[kind] * (limits[1] - limits[0])
    assert (spec.decode(stored) - x).abs().max() <= 0.51 * step
    torch.testing.assert_close(spec.encode(spec.decode(stored)), stored)
    beyond = spec.decode(spec.encode(x + 10 * (limits[1] - limits[0])))
    assert (beyond - limits[1]).abs().max() <= step
    assert spec.decode(stored).data_ptr() != stored.data_ptr()


def test_silence_is_exactly_zero() -> None:
    assert SIGNAL.decode(torch.zeros(1, 1, 800, dtype=torch.int16)).abs().max() == 0
    assert SIGNAL.kind.blank((-1.0, 1.0)) == 0


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("signal", np.zeros((2, 9), np.int32), "int32; int16, or floats in -1..1"),
        ("signal", np.full((2, 9), 1.5), "signal 0 has values that are not in -1..1"),
        ("signal", np.full((2, 9), np.nan), "signal 0 has values that are not in -1..1"),
        ("signal", np.zeros((2, 900, 2), np.int16), r"save signals.transpose\(0, 2, 1\)$"),
        ("signal", np.zeros(9, np.int16), r"\[N, L\] or \[N, C, L\]"),
        ("vector", np.zeros((2, 3, 4)), r"numbers \[N, D\]"),
        ("vector", np.array([["a", "b"]]), r"numbers \[N, D\]"),
        ("vector", np.array([[0.0, 1.0], [0.5, 7.0]]), "column 1 of row 1 is 7.0"),
        ("vector", np.array([[np.nan, 1.0]]), "column 0 of row 0 is nan"),
    ],
)
def test_arrays_of_another_kind_are_refused(kind: str, array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modality_named(kind).check("where", array)


def test_channels_that_seem_to_be_last_are_named() -> None:
    """Not refused: there are arrays of sensors with more channels than samples."""
    draw = np.random.default_rng(0)
    arrays = (draw.random((2, 50, 3)), np.arange(2))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("data.dataset.note", lambda runtime, line: said.append(line))
        for shape in ((2, 50, 3), (2, 3, 50)):
            given = arrays[0].reshape(shape), arrays[1]
            readers = {"test": lambda given=given: given}
            data = Dataset("sensors", readers, ["a", "b"], Runtime("cpu"), modality="signal")
            assert data.open("test").shape == shape[1:]
    assert said == [
        "data sensors: test: 50 channels of 3 samples each; if it is the other way round, save "
        "signals.transpose(0, 2, 1)"
    ]


def test_layouts() -> None:
    signals = np.arange(12, dtype=np.int16).reshape(2, 6)
    x = modality_named("signal").tensor(signals)
    assert x.shape == (2, 1, 6)
    assert x[1, 0, 5] == 11
    assert np.array_equal(modality_named("signal").array(x)[:, 0], signals)
    assert modality_named("signal").tensor(np.zeros((2, 3, 6))).dtype == torch.float32
    assert modality_named("vector").tensor(np.zeros((2, 3), np.int64)).dtype == torch.float32
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    assert np.array_equal(
        modality_named("image").array(modality_named("image").tensor(images)), images
    )


def test_signals_are_padded_and_never_cut() -> None:
    x = torch.ones(2, 1, 5, dtype=torch.int16)
    padded = modality_named("signal").fit(x, 8)
    assert padded.tolist() == [[[0, 1, 1, 1, 1, 1, 0, 0]]] * 2
    with pytest.raises(ValueError, match=r"data\.size=4 would cut signals of 5 samples"):
        modality_named("signal").fit(x, 4)
    with pytest.raises(ValueError, match="does not apply to vectors"):
        modality_named("vector").fit(torch.zeros(2, 3), 4)


def test_a_signals_picture_shows_its_course() -> None:
    """A square wave: its upper half in the upper half of the tile, and so on; no column is bare."""
    half = torch.cat([torch.full((400,), 0.8), torch.full((400,), -0.8)])
    picture = SIGNAL.kind.picture(half.view(1, 1, -1), SIGNAL)
    assert picture.shape[0] == 3
    assert 500 <= picture.shape[2] <= 1200
    ink = picture[0] < 0.5
    height = len(ink)
    columns = ink.any(dim=0).nonzero().flatten()
    first, last = int(columns[0]), int(columns[-1])
    assert bool(ink[:, first : last + 1].any(dim=0).all())
    middle = (first + last) // 2
    upper, lower = ink[:, first : middle - 5], ink[:, middle + 5 : last]
    assert upper.nonzero()[:, 0].float().mean() < 0.3 * height
    assert lower.nonzero()[:, 0].float().mean() > 0.7 * height


@pytest.mark.parametrize("length", [8, 64, 800, 40_000])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_pictures_of_signals_are_of_readable_size(length: int, count: int) -> None:
    spec = InputSpec((2, length), (-1.0, 1.0), (0.0,) * 2, (1.0,) * 2)
    picture = spec.kind.picture(spec.noise(count, torch.device("cpu")), spec)
    assert max(picture.shape[1:]) <= 2000
    assert 0 <= picture.min() < picture.max() <= 1
    assert picture.shape[2] >= 500


def test_a_vectors_picture_shows_its_values() -> None:
    x = torch.tensor([[0.5, 1.0, 0.0], [1.0, 0.5, 0.5]])
    picture = VECTOR.kind.picture(x, VECTOR)
    side = picture.shape[2] // 3
    assert side >= 6

    def middle(row: int, column: int) -> Tensor:
        return picture[:, row * side + side // 2, column * side + side // 2]

    white, red, blue = middle(0, 0), middle(0, 1), middle(0, 2)
    assert white.min() > 0.9
    assert red[0] > red[2] + 0.4
    assert blue[2] > blue[0] + 0.4
    assert torch.equal(middle(1, 0), red)


def test_sound_is_what_was_said() -> None:
    x = torch.rand(3, 1, 800) * 2 - 1
    sound = SIGNAL.kind.sound(x, SIGNAL)
    assert sound is not None
    assert torch.equal(sound[0, :800], x[0, 0])
    assert sound.shape == (1, 3 * (800 + 1200))
    silent = InputSpec((1, 800), (-1.0, 1.0))
    assert silent.kind.sound(x, silent) is None
    slow = InputSpec((1, 800), (-1.0, 1.0), rate=0.2)  # a sensor's
    assert slow.kind.sound(x, slow) is None
    assert IMAGE.kind.sound(torch.rand(2, 1, 8, 8), IMAGE) is None


def test_a_crop_of_a_signal_shifts_it() -> None:
    x = torch.arange(1.0, 801.0).repeat(64, 1, 1) / 800
    y = RandomCrop(SIGNAL, 5)(x, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (5, 5))
    shifts = {
        next(i for i in range(11) if torch.equal(p[:, i : i + 800], row))
        for p, row in zip(padded, y, strict=True)
    }
    assert len(shifts) > 6


@pytest.mark.parametrize("kind", ["signal", "vector"])
def test_what_is_for_images_refuses_others(kind: str) -> None:
    spec = SPECS[kind]
    for part in (RandomFlip, RandomAffine, lambda s: Kornia(s, [torch.nn.Identity()])):
        with pytest.raises(ValueError, match=f"is for images, but the inputs are {kind}s"):
            part(spec)  # type: ignore[operator]
    with pytest.raises(ValueError, match="less than the inputs' shortest side"):
        RandomCrop(IMAGE, 8)


def test_a_data_set_of_signals() -> None:
    x = (np.random.default_rng(0).normal(size=(40, 64)) * 5000).astype(np.int16)
    labels = np.arange(40) % 2
    readers = {which: lambda: (x, labels) for which in ("train", "test")}
    data = Dataset(
        "mine", readers, ["a", "b"], Runtime("cpu"), size=80, modality="signal", rate=8000
    )
    spec = data.spec
    assert (spec.shape, spec.range, spec.modality, spec.rate) == (
        (1, 80),
        (-1.0, 1.0),
        "signal",
        8000,
    )
    batch, _ = data.open("test").batch(slice(0, 40))
    expected = np.pad(x / 32768, ((0, 0), (8, 8)))
    assert np.abs(batch[:, 0].numpy() - expected).max() < 1e-7
    assert spec.mean[0] == pytest.approx(expected.mean(), abs=1e-6)
    assert spec.std[0] == pytest.approx(expected.std(), abs=1e-6)
    with pytest.raises(ValueError, match=r"takes images \[1, 8, 8\], but data mine has signals"):
        data.check(IMAGE, 2)


def test_one_of_your_own_is_known_by_its_name() -> None:
    try:

        class Volume(Modality):
            name, plural, layout, rank = "volume", "volumes", "[C, D, H, W]", 4
            places = (1, 2, 3)

        spec = InputSpec((1, 2, 3, 4), modality="volume")
        assert isinstance(spec.kind, Volume)
        assert spec.to_dict()["modality"] == "volume"
        assert InputSpec(**spec.to_dict()) == spec
    finally:
        MODALITIES.pop("volume", None)
    with pytest.raises(
        ValueError, match="there is no modality 'volume', only image, signal, text, vector"
    ):
        InputSpec((1, 2, 3, 4), modality="volume")
    with pytest.raises(TypeError, match="there is a modality called 'image'"):
        type("Image", (Modality,), {"name": "image"})


@pytest.mark.parametrize("name", ["breast_cancer", "two_tones"])
def test_a_size_is_not_overlooked(name: str) -> None:
    config = plain(compose([f"data={name}", "data.size=600"]))
    dataset = build_dataset(config, Runtime("cpu"))
    if name == "two_tones":
        assert dataset.shape == (1, 600)
    else:
        with pytest.raises(ValueError, match="does not apply to vectors"):
            dataset.open("test")
