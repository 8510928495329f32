"""Exports answer as the student does, and say what goes in and what comes out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.runtime import Runtime
from data.spec import InputSpec
from data.transforms import Edges
from engine.config import compose
from engine.train import run as train
from models.checkpoint import save_network
from models.classifier import Classifier
from models.digits import DigitsCNN
from tests.tools.students import CLASSES, made, needs_onnx, node_of, raw
from tools import evaluate
from tools.export import main, probes

SLOW = pytest.mark.slow
NETWORKS: dict[str, Any] = {
    "digits_cnn_small": ((1, 8, 8), {"width": 4}),
    "lenet5_half_bn": ((1, 32, 32), {}),
    "vit_digits": ((1, 8, 8), {}),
    "resnet8x4": ((3, 16, 16), {}),
    "wrn_16_1": ((3, 16, 16), {}),
    "vgg8": ((3, 32, 32), {}),
    "mobilenetv2_half": ((3, 32, 32), {}),
    "shufflenetv1": ((3, 32, 32), {}),
    "shufflenetv2": ((3, 32, 32), {}),
    "resnet18": ((3, 32, 32), {}),
    "resnet20": ((3, 16, 16), {}),
    "simkd": ((1, 8, 8), {}),
    "torchvision resnet18": ((3, 32, 32), {"name": "resnet18"}),
    "torchvision googlenet": ((3, 64, 64), {"name": "googlenet"}),
    "timm resnet18": ((3, 32, 32), {"name": "resnet18"}),
    "timm vit_tiny_patch16_224": (
        (3, 32, 32),
        {"name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8},
    ),
}
QUICK = {".onnx": ["digits_cnn_small"], ".pt2": ["lenet5_half_bn", "vit_digits"]}
EXPORTS = [
    pytest.param(name, suffix, marks=[] if name in quick else [SLOW])
    for suffix, quick in QUICK.items()
    for name in NETWORKS
]


def by_hand(module: torch.nn.Module, x: Tensor) -> Tensor:
    """Logits by the normalisation that ``made`` gives its students."""
    with torch.no_grad():
        logits: Tensor = module((x - 0.3) / 0.2)
    return logits


def of_onnx(out: Path, shape: tuple[int, ...]) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(out)
    [images], [logits] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", *shape])
    assert (logits.name, logits.shape) == ("logits", ["batch", len(CLASSES)])
    assert images.type == logits.type == "tensor(float)"
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), metadata


def of_pt2(out: Path, shape: tuple[int, ...]) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    metadata = dict.fromkeys(("input", "shape", "range", "classes", "provenance"), "")
    module = torch.export.load(out, extra_files=metadata).module()
    return module, metadata


@pytest.mark.parametrize(("name", "suffix"), EXPORTS)
def test_an_export_takes_raw_images_and_answers_as_the_student(
    name: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".onnx":
        needs_onnx()
    shape, keys = NETWORKS[name]
    student = made(tmp_path / "run", node_of(name.split()[0], **keys), shape)
    out = tmp_path / f"out{suffix}"
    assert main([str(tmp_path / "run"), str(out)]) == 0, capsys.readouterr().err
    exported, metadata = (of_onnx if suffix == ".onnx" else of_pt2)(out, shape)
    for count in (1, 5):
        x = raw(student, count)
        wanted = by_hand(student.module, x)
        scale = float(wanted.abs().max())
        torch.testing.assert_close(exported(x), wanted, rtol=0, atol=1e-4 * scale)
    check_metadata({key: json.loads(value) for key, value in metadata.items()}, shape)
    for folder in (Path(torch.__file__).parents[1], Path(__file__).parents[2], tmp_path):
        assert str(folder).encode() not in out.read_bytes()


def check_metadata(metadata: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert metadata["classes"] == [*CLASSES]
    assert metadata["shape"] == [*shape]
    assert metadata["range"] == [0, 1]
    assert "normalised inside" in metadata["input"]
    provenance = metadata["provenance"]
    assert (provenance["method"], provenance["teacher"]) == ("kd", "big")
    assert (provenance["student"], provenance["seed"]) == ("a name", 3)


def test_a_file_outside_of_its_run_is_described_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "run", node_of("digits_cnn_small", width=4), (1, 8, 8), range=(-1.0, 1.0))
    file = (tmp_path / "run" / "student.safetensors").rename(tmp_path / "mine.safetensors")
    out = tmp_path / "out.pt2"
    assert main([str(file), str(out)]) == 1
    said = capsys.readouterr().err
    assert "is not in a run directory: say student=NAME" in said
    assert "'a name'" in said
    assert main([str(file), str(out), "student=digits_cnn_small", "student.model.width=4"]) == 0
    assert "values from -1 to 1" in capsys.readouterr().out
    assert out.exists()


def test_a_transform_has_to_be_given_with_a_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, file = InputSpec((1, 8, 8)), tmp_path / "mine.safetensors"
    edges = Edges(spec)
    module = DigitsCNN(1, 10, 4)
    names = [str(i) for i in range(10)]
    student = Classifier(module, spec, names, transform=edges, takes=spec).eval()
    save_network(file, student, {"transform": json.dumps({"_target_": "data.transforms.Edges"})})
    words = ["student=digits_cnn", "student.model.width=4"]
    for command in (main, evaluate.main):
        here = ["data=digits", "device=cpu"] if command is evaluate.main else []
        more = here or [str(tmp_path / "out.pt2")]
        for chosen, said in (
            ([], "sees its inputs through a transform: add student.transform"),
            (
                ["student.transform={_target_: data.transforms.Edges, smooth: 0.1}"],
                "the same trans",
            ),
        ):
            assert command([str(file), *more, *words, *chosen]) == 1
            assert said in capsys.readouterr().err
    out = tmp_path / "seen.pt2"
    assert main([str(file), str(out), *words, "student.transform=edges"]) == 0
    x = torch.rand(3, 1, 8, 8)
    exported, _ = of_pt2(out, (1, 8, 8))
    torch.testing.assert_close(exported(x), student(x).logits, rtol=1e-4, atol=1e-4)


def test_a_file_in_its_run_is_found_there(tmp_path: Path) -> None:
    made(tmp_path / "run", node_of("digits_cnn_small", width=4), (1, 8, 8))
    file = tmp_path / "run" / "student.safetensors"
    assert main([str(file), str(tmp_path / "out.pt2")]) == 0


def test_inputs_of_the_run_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["device=cpu", "method=scratch", "student.model.width=4", "steps=3", "batch_size=5"]
    settings += ["evaluations=1", "checkpoints=1", f"run_dir={tmp_path / 'run'}"]
    train(compose(settings), Runtime("cpu"))
    assert main([str(tmp_path / "run"), str(tmp_path / "out.pt2")]) == 0
    told = capsys.readouterr().out
    assert "on 5 inputs of the run and 11 random inputs in batches of 1, 2 and 13" in told
    [checkpoint] = tmp_path.glob("run/checkpoints/step-*/rank0.pt")
    recent = torch.load(checkpoint, weights_only=True)["recent"][0]
    images, _ = probes(tmp_path / "run", InputSpec((1, 8, 8)))
    assert torch.equal(images[:5], recent)
    checkpoint.write_bytes(b"damaged")
    images, where = probes(tmp_path / "run", InputSpec((1, 8, 8), (2.0, 4.0), (3.0,)))
    assert where == "16 random inputs"
    assert 2 <= images.min() < 2.1 < 3.9 < images.max() <= 4
