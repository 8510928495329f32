"""What TensorBoard shows of a run: what one looks at first stands first, and can be seen."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import train
from data.spec import InputSpec
from engine.config import compose, plain
from engine.monitor import Board
from engine.result import swept


def loaded(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def spec(shape: tuple[int, int, int]) -> InputSpec:
    return InputSpec(shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])


def test_tags_hparams_and_pictures(tiny: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    arguments = [
        *tiny,
        "method=dafl",
        "seed=3",
        "synthesizer.optimizer.lr=0.004",
        f"run_dir={path}",
    ]
    assert train.main(arguments) == 0
    found = loaded(path)
    tags = found.Tags()
    groups = sorted({tag.partition("/")[0] for tag in tags["scalars"]})  # as TensorBoard does
    assert groups == ["eval", "loss", "lr", "synthesized", "system"]
    dots = [tag for tag in tags["scalars"] if len(found.Scalars(tag)) < 3]
    assert not dots, "a chart of a single dot says nothing"
    content = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["method"].string_value == "dafl"
    assert settings["synthesizer.optimizer.lr"].number_value == 0.004
    assert settings["seed"].number_value == 3
    assert "log_every" not in settings
    image = found.Images("synthesized/inputs")[-1]
    assert (image.width, image.height) == (4 * 66 + 2, 4 * 66 + 2)  # 16 inputs of 8 x 8


def test_what_one_sweeps() -> None:
    found = swept(plain(compose(["method=dfq", "loss=at", "optimizer.lr=0.5", "clip=null"])))
    for key in ("method", "data", "teacher", "student", "generator", "batch_size", "precision"):
        assert key in found
    assert found["optimizer.lr"] == 0.5
    assert found["distiller.losses.at.weight"] > 0
    assert found["synthesis.losses.bn.weight"] > 0
    assert {"synthesizer.optimizer.lr", "steps", "ema", "seed"} <= found.keys()
    assert not found.keys() & {"log_every", "run_root", "run_dir", "device", "clip"}
    assert all(isinstance(value, (str, int, float)) for value in found.values())


@pytest.mark.parametrize(
    ("shape", "count", "size"),
    [
        ((1, 8, 8), 64, (530, 530)),
        ((1, 28, 28), 64, (690, 690)),  # 84 a tile
        ((3, 32, 32), 5, (2 * 66 + 2, 3 * 66 + 2)),
        ((3, 64, 64), 200, (530, 530)),
        ((3, 224, 224), 64, (5 * 226 + 2, 5 * 226 + 2)),
        ((1, 32, 128), 64, (8 * 130 + 2, 8 * 34 + 2)),  # no room to be enlarged
        ((3, 1500, 1500), 4, (1500, 1500)),
    ],
)
def test_pictures_are_large_enough_to_see(
    shape: tuple[int, int, int], count: int, size: tuple[int, int]
) -> None:
    given = spec(shape)
    grid = given.kind.picture(torch.rand(count, *shape), given)
    assert (grid.shape[2], grid.shape[1]) == size


def test_a_small_image_keeps_its_pixels() -> None:
    images = torch.rand(2, 3, 4, 4)
    given = spec((3, 4, 4))
    grid = given.kind.picture(images, given)
    assert torch.equal(grid[:, 2:66, 2:66][:, 8::16, 8::16], images[0])


def test_texts_can_be_seen_and_read(tmp_path: Path) -> None:
    """TensorBoard gets the words as a block of code, in which Markdown reads nothing."""
    texts = InputSpec((4, 2), modality="text", words=("<pad>", "<unk>", "*a*", "b"))
    board = Board(tmp_path)
    board.inputs("synthesized/inputs", texts.decode(torch.tensor([[2, 3], [3, 0]])), texts, 3)
    board.close()
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    assert accumulator.Images("synthesized/inputs")[0].width == 1200
    [text] = accumulator.Tensors("synthesized/inputs/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    *a* b\n    b\n"


def test_signals_can_be_seen_and_heard(tmp_path: Path) -> None:
    """TensorBoard gets their picture, and the samples themselves at their rate."""
    signals = InputSpec((1, 400), (-1.0, 1.0), (0.0,), (0.3,), rate=8000)
    x = torch.linspace(-0.9, 0.9, 400).repeat(2, 1, 1)
    board = Board(tmp_path)
    board.inputs("synthesized/inputs", x, signals, 3)
    board.close()
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "audio": 0})
    accumulator.Reload()
    assert accumulator.Images("synthesized/inputs")[0].width >= 500
    [sound] = accumulator.Audio("synthesized/inputs")
    assert (sound.sample_rate, sound.content_type) == (8000, "audio/wav")
    _, samples = wavfile.read(BytesIO(sound.encoded_audio_string))
    assert np.abs(samples[:400] / 32767 - x[0, 0].numpy()).max() < 1e-3
    assert len(samples) == 2 * (400 + 1200)
