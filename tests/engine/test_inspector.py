"""Synthesized inputs held against test inputs, by one process, by several, and in a run."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor, nn

import train
from core.runtime import Runtime
from data.spec import InputSpec
from data.split import Split
from engine import diagnostics
from engine.diagnostics import Inspector, Reference
from engine.evaluate import Evaluator
from models.black_box import BlackBox
from models.classifier import Classifier
from tests.engine.runs import checkpoint, events
from tests.engine.test_diagnostics import by_loop, by_sqrtm, random

SPEC = InputSpec((1, 6, 6), mean=(0.4,), std=(0.3,))
ROWS = 103


def network(seed: int, pooled: bool = True, scale: float = 12.0) -> Classifier:
    torch.manual_seed(seed)
    features = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    head = nn.Linear(16, 5)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), features, head)
    if pooled:
        layers.taps = {"pooled": "3"}  # type: ignore[assignment]
    with torch.no_grad():
        head.weight.mul_(scale)
    classifier = Classifier(layers, SPEC)
    classifier(torch.rand(64, 1, 6, 6))  # running statistics of its own
    return classifier.eval()


@pytest.fixture
def split() -> Split:
    """In an order that has a trend, as a split that is sorted by class would."""
    images = torch.randint(0, 256, (ROWS, 1, 6, 6), generator=random(5), dtype=torch.uint8)
    images = (images * torch.linspace(0.2, 1, ROWS).view(-1, 1, 1, 1)).to(torch.uint8)
    return Split(images, torch.randint(0, 5, (ROWS,), generator=random(6)), torch.device("cpu"))


def inspector(teacher: Classifier, split: Split, batch_size: int = 500) -> Inspector:
    """One that has been shown the test split."""
    found = Inspector(teacher, network(1), Runtime("cpu"), len(split))
    Evaluator(network(1), teacher, split, Runtime("cpu"), batch_size, found)
    return found


@pytest.mark.parametrize("batch_size", [7, 500])
def test_findings_are_those_of_the_formulas(batch_size: int, split: Split) -> None:
    teacher, student = network(0), network(1)
    images = torch.rand(50, 1, 6, 6, generator=random(3))
    found = inspector(teacher, split, batch_size)(images)
    logits = teacher(images).logits.detach()
    counts = np.bincount(logits.argmax(1).numpy(), minlength=5) / 50
    assert found["class_histogram"] == pytest.approx(counts.tolist())
    assert found["class_balance"] == pytest.approx(scipy.stats.entropy(counts) / np.log(5))
    entropy = scipy.stats.entropy(logits.softmax(1).numpy(), axis=1).mean()
    assert found["teacher_entropy"] == pytest.approx(float(entropy), rel=1e-4)
    same = (logits.argmax(1) == student(images).logits.argmax(1)).float().mean()
    assert found["agreement"] == pytest.approx(float(same))
    x = teacher.module[0](SPEC.normalize(images))  # type: ignore[index,operator]
    layer = teacher.batchnorms()[0]
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    gap = (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()
    assert found["bn_gap"] == pytest.approx(gap.item(), rel=1e-4)
    view, real = teacher.frozen(["pooled"]), split.batch(slice(0, ROWS))[0]
    made, shown = (view(x).features["pooled"] for x in (images, real))
    assert found["feature_space"] == "pooled"
    assert found["frechet_distance"] == pytest.approx(by_sqrtm(made, shown), rel=1e-4)
    usual = by_loop(shown[torch.arange(50) * ROWS // 50])
    assert found["diversity"] == pytest.approx(by_loop(made) / usual, rel=1e-4)


def test_real_inputs_are_like_themselves(split: Split) -> None:
    look = inspector(network(0), split)
    real = split.batch(slice(0, ROWS))[0]
    found = look(real)
    assert found["frechet_distance"] < 1e-8
    assert found["diversity"] == pytest.approx(1)
    assert look(1 - real)["frechet_distance"] > 0.01
    assert look(real[::2])["frechet_distance"] > 1e-4  # the bias of a small sample


def test_a_collapse_is_seen(split: Split) -> None:
    images = torch.rand(1, 1, 6, 6, generator=random(0)).expand(64, -1, -1, -1)
    noise = 1e-4 * torch.randn(64, 1, 6, 6, generator=random(1))
    for x in (images, images + noise):
        found = inspector(network(0), split)(x)
        assert found["class_balance"] == 0
        assert found["diversity"] < 0.01
        assert list(found["warnings"]) == ["few_classes", "near_duplicates"]
    assert found["diversity"] > 0


def test_only_the_latest_inputs_are_compared(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "LOOK", 20)
    look = inspector(network(0), split, 7)
    images = torch.rand(50, 1, 6, 6, generator=random(3))
    late, every = look(images[-20:]), look(images)
    for key in ("frechet_distance", "diversity"):
        assert every[key] == late[key]
    assert every["class_histogram"] != late["class_histogram"]
    real = split.batch(torch.arange(20) * ROWS // 20)[0]
    view = network(0).frozen(["pooled"])
    torch.testing.assert_close(look.reference.summary()[1].float(), view(real).features["pooled"])


def test_more_inputs_than_test_inputs_are_thinned_to_as_many(split: Split) -> None:
    images = torch.rand(2 * ROWS, 1, 6, 6, generator=random(3))
    found = inspector(network(0), split)(images)
    view, real = network(0).frozen(["pooled"]), split.batch(slice(0, ROWS))[0]
    made, shown = (view(x).features["pooled"] for x in (images[::2], real))
    assert found["diversity"] == pytest.approx(by_loop(made) / by_loop(shown), rel=1e-4)


def test_sums_over_the_test_split_keep_what_is_small(split: Split) -> None:
    """In batches of float32 features far from zero, as logits of an odd network may be."""
    x = 1000 + 0.1 * torch.randn(60, 4, generator=random(0))
    reference = Reference(60, 4, Runtime("cpu"))
    for first in range(0, 60, 15):
        reference.add(x[first : first + 15], first)
    gaussian, sample = reference.summary()
    wanted = torch.from_numpy(np.cov(x.double().T.numpy()))
    torch.testing.assert_close(gaussian.root.T @ gaussian.root, wanted, atol=1e-7, rtol=0)
    assert torch.equal(sample, x.double())


def test_the_gap_is_the_mean_over_layers(split: Split) -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(1), nn.BatchNorm2d(1, affine=False)]
    teacher = Classifier(nn.Sequential(*norms, nn.Flatten(), nn.Linear(36, 5)), SPEC).eval()
    found = inspector(teacher, split)(torch.rand(50, 1, 6, 6, generator=random(3)))
    x = SPEC.normalize(torch.rand(50, 1, 6, 6, generator=random(3)))
    gaps = []
    for norm in norms:  # as they were made: mean 0 and variance 1
        gaps.append(float(x.mean().abs() + (x.var(correction=0) - 1).abs()))
        x = norm.eval()(x).detach()
    assert found["bn_gap"] == pytest.approx(sum(gaps) / 2, rel=1e-4)


def test_the_test_split_is_read_once(split: Split) -> None:
    look = inspector(network(0), split, 10)
    for _ in range(2):
        look(torch.rand(20, 1, 6, 6, generator=random(3)))
    assert split.rows_read == ROWS


def test_every_test_input_has_to_be_shown(split: Split) -> None:
    look = Inspector(network(0), network(1), Runtime("cpu"), ROWS + 1)
    Evaluator(network(1), network(0), split, Runtime("cpu"), inspector=look)
    with pytest.raises(AssertionError, match="every test input"):
        look(torch.rand(20, 1, 6, 6))


def test_one_input_has_nothing_to_be_compared_with(split: Split) -> None:
    found = inspector(network(0), split)(torch.rand(1, 1, 6, 6))
    assert not {"frechet_distance", "diversity"} & set(found)
    assert found["teacher_entropy"] >= 0


@pytest.mark.parametrize("rows", [1, 9])
def test_few_test_inputs_of_one_kind(rows: int) -> None:
    """One has no spread, and equal ones have no diversity, to compare with."""
    images = torch.zeros(rows, 1, 6, 6, dtype=torch.uint8)
    look = inspector(network(0), Split(images, torch.zeros(rows).long(), torch.device("cpu")), 4)
    found = look(torch.rand(20, 1, 6, 6, generator=random(3)))
    assert ("frechet_distance" in found) == (rows > 1)
    assert "diversity" not in found


def without_tap() -> Classifier:
    return network(0, pooled=False)


def without_batchnorm() -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), SPEC)


def black_box() -> Classifier:
    return BlackBox(network(0, scale=1.0), Runtime("cpu"))


@pytest.mark.parametrize("build", [without_tap, without_batchnorm, black_box])
def test_logits_are_compared_where_there_is_no_more(
    build: Callable[[], Classifier], split: Split
) -> None:
    teacher = build()
    images = torch.rand(50, 1, 6, 6, generator=random(3))
    found = inspector(teacher, split)(images)
    assert found["feature_space"] == "logits"
    assert ("bn_gap" in found) == (build is without_tap)
    with torch.no_grad():
        made, real = (teacher(x).logits for x in (images, split.batch(slice(0, ROWS))[0]))
    if build is black_box:  # whose logits sum to zero: sqrtm wants a basis of what they span
        basis = torch.linalg.qr(torch.cat([torch.ones(5, 1), torch.eye(5)[:, :4]], 1))[0]
        made, real = made @ basis[:, 1:], real @ basis[:, 1:]
    assert found["frechet_distance"] == pytest.approx(by_sqrtm(made, real), rel=1e-4)


def test_very_wide_features_are_left_alone(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(50, 1, 6, 6, generator=random(3))
    for widest, space in ((16, "pooled"), (15, "logits")):
        monkeypatch.setattr(diagnostics, "WIDEST", widest)
        assert inspector(network(0), split)(images)["feature_space"] == space


class Rank(Runtime):
    """One of several processes, played by a thread."""

    def __init__(self, rank: int, shared: list[Tensor], barrier: threading.Barrier) -> None:
        super().__init__("cpu")
        self.rank, self.world_size = rank, len(shared)
        self.shared, self.barrier = shared, barrier

    def sum(self, tensor: Tensor) -> Tensor:
        self.shared[self.rank] = tensor.clone()
        self.barrier.wait()
        total = sum(self.shared)
        self.barrier.wait()
        return tensor.copy_(total)  # type: ignore[arg-type]

    def average(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            self.sum(tensor).div_(self.world_size)


@pytest.mark.parametrize("batch_size", [7, 500])
def test_ranks_find_together_what_one_process_finds(batch_size: int, split: Split) -> None:
    """With the larger batches, the second rank has no test input at all."""
    images = torch.rand(60, 1, 6, 6, generator=random(3))
    shared, barrier = [torch.empty(0)] * 2, threading.Barrier(2, timeout=20)
    ranks = [Rank(r, shared, barrier) for r in range(2)]
    networks = [(network(0), network(1)) for _ in ranks]
    found: dict[int, dict[str, Any]] = {}

    def work(runtime: Rank) -> None:
        teacher, student = networks[runtime.rank]
        look = Inspector(teacher, student, runtime, ROWS)
        Evaluator(student, teacher, split, runtime, batch_size, look)
        look(images[:30])  # the sums over ranks are to be taken once
        found[runtime.rank] = look(images[30 * runtime.rank :][:30])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = inspector(network(0), split)(images)
    assert found[0] == found[1]
    assert found[0].keys() == alone.keys()
    # each rank has BatchNorm statistics of its own, and the gap is the mean of theirs
    for key in alone.keys() - {"bn_gap", "feature_space", "warnings"}:
        assert found[0][key] == pytest.approx(alone[key], rel=1e-5), key


def test_a_run_tells_it_all(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(diagnostics, "NEAR_DUPLICATES", 1e6)
    path = tmp_path / "run"
    assert train.main([*tiny, "method=dafl", f"run_dir={path}"]) == 0
    found = json.loads((path / "result.json").read_text())["synthesized"]
    assert found["feature_space"] == "pooled"
    assert "near-duplicates" in found["warnings"]["near_duplicates"]
    assert checkpoint(path)["found"] == found
    lines = [s for s in capsys.readouterr().out.splitlines() if "near-duplicates" in s]
    assert len(lines) == 1
    assert lines[0].startswith("warning at step 8: ")
    steps: dict[str, set[int]] = {}
    for tag, step in events(path):
        steps.setdefault(tag, set()).add(step)
    numbers = {"class_balance", "teacher_entropy", "frechet_distance", "diversity", "agreement"}
    for key in numbers | {"bn_gap"}:
        assert np.isfinite(found[key])
        assert steps[f"synthesized/{key}"] == {8, 16, 24}
    assert steps["warning/near_duplicates/text_summary"] == {8, 16, 24}
    assert not any(tag.startswith("warning/few_classes") for tag in steps)
