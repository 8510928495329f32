"""Chains of runs: assistants as teachers (TAKD), and as further guides (DGKD)."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.guides import DenselyGuided
from distillers.response import KD
from engine.config import compose
from engine.train import run
from models.checkpoint import save_network
from models.classifier import Classifier, Outputs
from models.digits import DigitsCNN
from models.pretrained import load_classifier

SPEC = InputSpec((1, 8, 8), (0.0, 1.0), (0.3,), (0.4,))
CLASSES = tuple("abc")
OTHER = InputSpec((1, 8, 8), (0.0, 1.0), (0.5,), (0.25,))


def saved(folder: Path, seed: int, spec: InputSpec = OTHER) -> dict[str, Any]:
    """An assistant on disk, as a loss's configuration gives it once the model is built."""
    torch.manual_seed(seed)
    path = folder / f"guide{seed}.safetensors"
    save_network(path, Classifier(DigitsCNN(1, 3, 4), spec, CLASSES), {})
    return {"model": DigitsCNN(1, 3, 4), "checkpoint": str(path)}


def batch() -> tuple[Outputs, Outputs, Batch]:
    torch.manual_seed(9)
    x = torch.rand(5, 1, 8, 8)
    return Outputs(torch.randn(5, 3, requires_grad=True)), Outputs(torch.randn(5, 3)), Batch(x)


def make(folder: Path, count: int, **options: Any) -> DenselyGuided:
    guides = [saved(folder, seed) for seed in range(count)]
    return DenselyGuided(SPEC, CLASSES, Runtime("cpu"), guides, **options)


def kl_of_each(loss: DenselyGuided, student: Outputs, teacher: Outputs, b: Batch) -> list[float]:
    answers = [teacher, *(guide(b.input) for guide in loss.guides)]
    return [KD(loss.temperature)(student, outputs, b).item() for outputs in answers]


def test_is_the_sum_over_teacher_and_guides(tmp_path: Path) -> None:
    loss, (student, teacher, b) = make(tmp_path, 2, drop=0), batch()
    each = kl_of_each(loss, student, teacher, b)
    assert len(set(each)) == 3
    assert loss(student, teacher, b).item() == pytest.approx(sum(each))
    assert loss.meter.queries == 2 * len(b.input)


def test_a_guide_normalises_inputs_in_its_own_way(tmp_path: Path) -> None:
    loss, (_, _, b) = make(tmp_path, 1, drop=0), batch()
    network = load_classifier(DigitsCNN(1, 3, 4), tmp_path / "guide0.safetensors").eval()
    expected = network.module((b.input - 0.5) / 0.25)
    torch.testing.assert_close(loss.guides[0](b.input).logits, expected)


def test_each_step_drops_as_many_as_it_should(tmp_path: Path) -> None:
    loss, (student, teacher, b) = make(tmp_path, 2, drop=1), batch()
    each = kl_of_each(loss, student, teacher, b)
    left_out = []
    for _ in range(60):
        before, value = loss.meter.queries, loss(student, teacher, b).item()
        missing = [i for i in range(3) if value == pytest.approx(sum(each) - each[i])]
        assert len(missing) == 1
        left_out += missing
        asked = (loss.meter.queries - before) // len(b.input)
        assert asked == (2 if missing == [0] else 1)  # what is dropped is not asked either
    assert all(10 < left_out.count(i) < 30 for i in range(3))


@pytest.mark.parametrize(("guides", "drop"), [(0, 1), (1, 5), (2, 2)])
def test_one_always_stays(guides: int, drop: int, tmp_path: Path) -> None:
    loss, (student, teacher, b) = make(tmp_path, guides, drop=drop), batch()
    each = kl_of_each(loss, student, teacher, b)
    for _ in range(5):
        value = loss(student, teacher, b)
        assert sum(value.item() == pytest.approx(kl) for kl in each) == 1
        value.backward()
    assert student.logits.grad is not None


def test_guides_are_frozen_and_outside_of_the_state(tmp_path: Path) -> None:
    loss, (student, teacher, b) = make(tmp_path, 2, drop=0), batch()
    before = copy.deepcopy([guide.state_dict() for guide in loss.guides])
    nn.ModuleList([loss]).train()
    loss(student, teacher, b).backward()
    assert not list(loss.parameters())
    assert list(loss.state_dict()) == ["_extra_state"]
    for guide, held in zip(loss.guides, before, strict=True):
        assert not any(m.training for m in guide.modules())
        assert not any(p.requires_grad or p.grad is not None for p in guide.parameters())
        assert all(torch.equal(v, held[k]) for k, v in guide.state_dict().items())


def test_a_resumed_run_drops_the_same(tmp_path: Path) -> None:
    (student, teacher, b), first, second = batch(), make(tmp_path, 2), make(tmp_path, 2)
    for _ in range(7):
        first(student, teacher, b)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.manual_seed(99)
    for _ in range(20):
        assert torch.equal(first(student, teacher, b), second(student, teacher, b))
    assert first.meter.queries == second.meter.queries > 0


def test_ranks_drop_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path, 3)
    second = make(tmp_path, 3)
    second.runtime = copy.copy(first.runtime)
    second.runtime.rank = 1
    assert [first._draw() for _ in range(20)] != [second._draw() for _ in range(20)]


def test_errors(tmp_path: Path) -> None:
    guide = saved(tmp_path, 0)
    runtime = Runtime("cpu")
    with pytest.raises(ValueError, match="drop"):
        DenselyGuided(SPEC, CLASSES, runtime, drop=-1)
    with pytest.raises(ValueError, match="a guide is"):
        DenselyGuided(SPEC, CLASSES, runtime, [{"model": guide["model"]}])
    with pytest.raises(ValueError, match="cannot read"):
        DenselyGuided(SPEC, CLASSES, runtime, [{**guide, "checkpoint": str(tmp_path / "no")}])
    with pytest.raises(ValueError, match="3 classes"):
        DenselyGuided(SPEC, tuple("abcd"), runtime, [guide])
    wide = InputSpec((1, 8, 8), (0.0, 255.0), (0.5,), (0.25,))
    with pytest.raises(ValueError, match="trained as the teacher"):
        DenselyGuided(SPEC, CLASSES, runtime, [saved(tmp_path, 1, wide)])


def link(folder: Path, name: str, width: int, *arguments: str) -> dict[str, Any]:
    """One run of a chain: a student of this width, three steps long."""
    settings = ["steps=3", "batch_size=8", "evaluations=1", "checkpoints=1", "device=cpu"]
    settings += [f"run_dir={folder / name}", f"student.model.width={width}", *arguments]
    return run(compose(settings), Runtime("cpu"))


def test_a_run_teaches_the_next(tmp_path: Path) -> None:
    """TAKD: teacher → assistant → student; then DGKD, where both guide the student."""
    link(tmp_path, "teacher", 8, "method=scratch")
    chain = ("method=kd", "teacher.model.width=8")
    above = f"teacher.checkpoint={tmp_path}/teacher/student.safetensors"
    assistant = link(tmp_path, "assistant", 6, *chain, above)
    last = f"teacher.checkpoint={tmp_path}/assistant/student.safetensors"
    student = link(tmp_path, "student", 4, "method=kd", "teacher.model.width=6", last)
    assert student["teacher"]["accuracy"] == assistant["student"]["accuracy"]
    assert student["teacher"]["parameters"] == assistant["student"]["parameters"]

    guide = "{_target_: models.digits.DigitsCNN, width: 6}"
    path = tmp_path / "assistant" / "student.safetensors"
    guides = f"distiller.losses.dgkd.loss.guides=[{{model: {guide}, checkpoint: '{path}'}}]"
    dense = link(tmp_path, "dense", 4, *chain, above, "loss=dgkd", guides)
    assert dense["status"] == "finished"
    assert dense["cost"]["teacher_queries"] >= 3 * 8  # the teacher's; a guide dropped is not asked
