"""What a run shows of its inputs: files that open, and how they come into card and report."""

from __future__ import annotations

from pathlib import Path

import torch
from scipy.io import wavfile
from torch import nn
from torchvision.io import decode_image

from data.spec import InputSpec
from data.transforms import Edges
from engine.card import _inputs
from engine.ownership import TEXT_MARK
from engine.shown import write_inputs
from models.classifier import Classifier
from tools.report.page import _heard_or_read
from tools.report.runs import read_runs


def network(spec: InputSpec) -> Classifier:
    return Classifier(nn.Flatten(), spec)


def test_sounds_can_be_heard(tmp_path: Path) -> None:
    spec = InputSpec((1, 400), (-1.0, 1.0), (0.0,), (0.1,), modality="signal", rate=8000)
    wave = 0.5 * torch.sin(torch.arange(400) * 0.1).expand(3, 1, -1)
    write_inputs(tmp_path, wave, network(spec))
    assert {p.name for p in tmp_path.iterdir()} == {"inputs.png", "inputs.wav"}
    rate, samples = wavfile.read(tmp_path / "inputs.wav")
    assert rate == 8000
    assert len(samples) > 3 * 400
    torch.testing.assert_close(
        torch.from_numpy(samples[:400] / 32767).float(), wave[0, 0], atol=1e-4, rtol=0
    )
    assert "[inputs.wav](inputs.wav)" in _inputs(tmp_path)
    shown = _heard_or_read(read_runs(tmp_path))
    assert '<audio controls src="data:audio/wav;base64,UklGR' in shown
    assert "<pre>" not in shown


def test_texts_can_be_read(tmp_path: Path) -> None:
    words = ("<pad>", "<unk>", "<b>", "how")
    spec = InputSpec((4, 2), modality="text", words=words)
    write_inputs(tmp_path, spec.decode(torch.tensor([[3, 2], [2, 0]])), network(spec))
    assert {p.name for p in tmp_path.iterdir()} == {"inputs.png", "inputs.txt"}
    assert (tmp_path / "inputs.txt").read_text() == f"{TEXT_MARK}\n\nhow <b>\n<b>\n"
    run = read_runs(tmp_path)
    assert run.text == "how <b>\n<b>"
    assert "<pre>how &lt;b&gt;\n&lt;b&gt;</pre>" in _heard_or_read(run)
    assert "[inputs.txt](inputs.txt)" in _inputs(tmp_path)


def test_images_are_a_picture_alone(tmp_path: Path) -> None:
    write_inputs(tmp_path, torch.rand(4, 1, 8, 8), network(InputSpec((1, 8, 8))))
    assert [p.name for p in tmp_path.iterdir()] == ["inputs.png"]
    assert _heard_or_read(read_runs(tmp_path)) == ""


def test_what_the_student_sees_is_shown_too(tmp_path: Path) -> None:
    """Of a square its outline, where the square itself has no edges inside."""
    spec = InputSpec((1, 16, 16))
    edges = Edges(spec)
    square = torch.zeros(1, 1, 16, 16)
    square[..., 4:12, 4:12] = 1
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    student = Classifier(module, edges.measured(spec, square), transform=edges, takes=spec)
    write_inputs(tmp_path, square, student)
    assert {p.name for p in tmp_path.iterdir()} == {"inputs.png", "inputs_student.png"}
    as_it_is, seen = (decode_image(str(p)) for p in sorted(tmp_path.iterdir()))
    scale = as_it_is.shape[1] // 16
    middle = slice(7 * scale, 9 * scale)
    assert as_it_is[:, middle, middle].float().mean() > 200
    assert seen[:, middle, middle].float().mean() < 50
    assert "As the student sees them:\n\n![inputs](inputs_student.png)" in _inputs(tmp_path)


def test_another_programs_files_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "inputs.wav").write_text("no sound")
    (tmp_path / "inputs.txt").write_text("mine")
    run = read_runs(tmp_path)
    assert (run.sound, run.text) == (None, "")
