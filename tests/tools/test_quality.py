"""What a layer has to teach: by naive loops, by limiting cases, and for a run."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from core.runtime import Runtime
from engine.config import compose
from engine.train import run
from tools.quality import main, quality, quality_of_run


def test_by_naive_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3, 3, 3, 3])
    members = [x[labels == c].flatten(1) for c in (0, 1, 3)]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return abs(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))

    within = [[cosine(a, b) for a, b in itertools.combinations(m, 2)] for m in members]
    between = [[cosine(a, b) for a in m for b in n] for m, n in itertools.permutations(members, 2)]
    nearest = [
        min(float((a - b).norm()) for a in m for n in members if n is not m for b in n)
        for m in members
    ]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    entropies = []
    for m in members:
        p = torch.linalg.svdvals(m - m.mean(0)).square()
        p = p[p > 1e-20] / p.sum()
        entropies.append(float(-(p * p.log()).sum()))
    q = quality(x, labels, population=1000)
    s = mean([mean(w) for w in within]) - mean([mean(b) for b in between])
    i = (1 - mean([min(w) for w in within])) * mean(entropies) / math.log(5)
    norm = mean([mean([float(a.norm()) for a in m]) for m in members])
    e = 2 * mean(nearest) / norm * (1000 / math.pi) ** (1 / 6)
    assert q.separation == pytest.approx(s)
    assert q.information == pytest.approx(i)
    assert q.efficiency == pytest.approx(e)
    assert q.total == pytest.approx(s + math.sqrt(i * e))


def test_collapsed_classes_are_separate_and_have_no_information() -> None:
    labels = torch.arange(3).repeat_interleave(4)
    q = quality(torch.eye(3)[labels], labels, population=12)
    assert q.separation == pytest.approx(1)
    assert q.information == pytest.approx(0, abs=1e-6)
    assert q.efficiency == pytest.approx(2 * math.sqrt(2) * (12 / math.pi) ** (1 / 3), rel=1e-5)


def test_scale_does_not_matter_and_a_dead_layer_is_finite() -> None:
    x, labels = torch.randn(12, 5), torch.arange(3).repeat(4)
    one, other = quality(x, labels, 100), quality(7 * x, labels, 100)
    assert one.total == pytest.approx(other.total, rel=1e-4)
    assert math.isfinite(quality(torch.zeros(12, 5), labels, 100).total)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        quality(torch.randn(4, 5), torch.zeros(4), 100)
    with pytest.raises(ValueError, match="two inputs of each"):
        quality(torch.randn(4, 5), torch.arange(4), 100)


def test_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"run_dir={tmp_path / 'run'}"
    config = compose(["method=scratch", place, "device=cpu", "steps=4", "batch_size=16"])
    config.student.model.width = 4
    run(config, Runtime("cpu"))
    found = quality_of_run(tmp_path / "run", inputs=100)
    assert list(found) == ["stage1", "stage2"]
    assert found["stage1"].total != found["stage2"].total
    assert main([str(tmp_path / "run"), "stage1.0", "--inputs", "50"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("stage1.0 ")
    assert main([str(tmp_path / "run"), "stage9"]) == 1
    assert "no tap 'stage9'" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert "not a finished run" in capsys.readouterr().err


def test_layers_are_those_of_what_the_network_sees(tmp_path: Path) -> None:
    """With other weights than a transform shows it, the same network has other layers."""
    words = ["method=scratch", f"run_dir={tmp_path / 'run'}", "device=cpu", "steps=2"]
    config = compose([*words, "batch_size=16", "student.transform=fourier"])
    config.student.model.width = 4
    run(config, Runtime("cpu"))
    found = quality_of_run(tmp_path / "run", inputs=50)
    assert list(found) == ["stage1", "stage2"]  # of 8 x 5 values, where digits have 8 x 8
