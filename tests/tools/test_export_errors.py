"""What cannot be exported: one line says why, and nothing is written."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tools.students import made, needs_onnx, node_of, raw
from tools.export import compare_logits, main

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, kind):
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(16, num_classes)

    def forward(self, x):
        x = x.flatten(1)
        if self.kind == "operator":
            x = torch.special.bessel_j0(x)
        if self.kind == "batch" and not self.training:
            x = torch.stack([row * 2 for row in x])
        if self.kind == "data" and x.sum() > 0:
            x = x + 1
        if self.kind == "random":
            x = x + torch.rand_like(x)
        return self.linear(x)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A run directory whose student is a network of the user's, with a fault."""
    (tmp_path / "mynet.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))

    def own(kind: str) -> Path:
        made(tmp_path / "run", {"_target_": "mynet.Net", "kind": kind}, (1, 4, 4))
        return tmp_path / "run"

    return own


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What an export says on stderr, in one line, that fails and writes nothing."""

    def files() -> list[Path]:
        return sorted(p for p in tmp_path.rglob("*") if p.parent.name != "__pycache__")

    def refuse(source: Path, *overrides: str, out: str = "out.pt2") -> str:
        before = files()
        assert main([str(source), str(tmp_path / out), *overrides]) == 1
        assert files() == before
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    return refuse


def test_names(tmp_path: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert "run does not exist" in refuse(run)
    made(run, node_of("digits_cnn_small", width=4), (1, 8, 8))
    assert "a name that ends in .onnx or .pt2" in refuse(run, out="out.pth")
    assert "there is no folder" in refuse(run, out="absent/out.onnx")
    (tmp_path / "there.pt2").write_text("mine")
    assert "there.pt2 exists: remove it" in refuse(run, out="there.pt2")
    assert (tmp_path / "there.pt2").read_text() == "mine"
    assert "only student=NAME" in refuse(run, "teacher=lenet5")
    assert "did you mean 'width'" in refuse(run, "student.model.widht=4")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = refuse(run, out="out.onnx")
    assert "onnxscript cannot be imported: run pip install -e '.[export]'" in said
    (run / "student.safetensors").unlink()
    assert "holds no student yet" in refuse(run)
    (run / "config.yaml").unlink()
    assert "is not a run directory" in refuse(run)


def test_files_that_do_not_say_what_they_take(tmp_path: Path, refuse: Callable[..., str]) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    said = refuse(tmp_path / "other.safetensors", "student=digits_cnn_small")
    assert "does not say what its inputs and classes are" in said
    (tmp_path / "text.safetensors").write_text("nothing")
    assert "is not a checkpoint" in refuse(tmp_path / "text.safetensors", "student=lenet5")


def test_another_network(tmp_path: Path, refuse: Callable[..., str]) -> None:
    made(tmp_path / "run", node_of("digits_cnn_small", width=4), (1, 8, 8))
    said = refuse(tmp_path / "run", "student=digits_cnn_small", "student.model.width=8")
    assert "does not fit DigitsCNN" in said


@pytest.mark.parametrize(
    ("kind", "suffix", "said"),
    [
        ("operator", "onnx", "it has no operator for prims.bessel_j0. Export to .pt2"),
        ("batch", "pt2", "Net cannot be exported.*batches of one size only"),
        ("data", "pt2", "Net cannot be exported.*data-dependent"),
        ("random", "pt2", "differs from the student by .*nothing was written"),
    ],
)
def test_networks(
    kind: str,
    suffix: str,
    said: str,
    own: Callable[[str], Path],
    refuse: Callable[..., str],
) -> None:
    if suffix == "onnx":
        needs_onnx()
    run = own(kind)
    assert re.search(said, refuse(run, "trust=[mynet]", out=f"out.{suffix}"))


def test_comparison(tmp_path: Path) -> None:
    """1e-3 of logits, or of the largest one below 1, or the rounding of very large ones."""
    student = made(tmp_path / "run", node_of("digits_cnn_small", width=4), (1, 8, 8))
    x = raw(student, 16)

    def passes(scale: float, error: float) -> bool:
        def wanted(images: Tensor) -> Tensor:
            return scale * images.flatten(1)[:, :3] / x.flatten(1)[:, :3].max()

        class Student(torch.nn.Module):
            def forward(self, images: Tensor) -> object:
                return type("Outputs", (), {"logits": wanted(images)})

        try:
            compare_logits(Student(), lambda images: wanted(images) + error, x)  # type: ignore[arg-type]
        except ValueError:
            return False
        return True

    assert passes(10, 0.9e-3)
    assert not passes(10, 1.1e-3)
    assert passes(0.1, 0.9e-4)
    assert not passes(0.1, 1.1e-4)
    assert passes(1e4, 0.09)
    assert not passes(1e4, 0.11)
    assert not passes(1, float("nan"))


def test_logits_of_another_shape(tmp_path: Path) -> None:
    student = made(tmp_path / "run", node_of("digits_cnn_small", width=4), (1, 8, 8))
    with pytest.raises(ValueError, match=r"logits of shape \(1, 1\), not \(1, 5\)"):
        compare_logits(student, lambda images: student(images).logits[:, :1], raw(student, 16))
