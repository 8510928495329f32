"""What went wrong in this field's public code, each failure as a test (see also the contracts)."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import distillers.attention
import distillers.response
import generators.losses
from core.runtime import Runtime
from data.spec import Batch, InputSpec
from distillers.base import TransferLoss
from engine.config import plain
from engine.evaluate import Evaluator
from engine.parts import build_dataset, build_parts
from engine.train import run
from generators.base import Synthesis, SynthesisLoss
from models.checkpoint import save_network
from models.classifier import Classifier, Outputs
from tests.test_contracts import make, same, small, snapshot, teacher_for


def test_1_the_adversarial_loss_compares_two_networks() -> None:
    alike = (
        "synthesis.student_by_batch=false"  # both by running statistics: equal where weights are
    )
    parts, teacher = make("dfad", "student.model.width=4", alike)
    assert teacher is not None
    observe = parts.source.synthesizer.observe
    images = torch.rand(8, 1, 8, 8)
    assert observe(images, None).total < -1e-4
    parts.student.module.load_state_dict(teacher.module.state_dict())
    assert observe(images, None).total.abs() < 1e-6


@pytest.mark.parametrize("method", ["dafl", "dfq", "adi"])
def test_2_no_weight_gradient_of_the_teacher_is_computed(method: str) -> None:
    parts, teacher = make(method)
    view = parts.source.synthesizer.observe.teacher
    parts.source.next()
    assert teacher is not None
    for parameter in [
        *teacher.parameters(),
        *view.parameters(),
        *parts.distiller.teacher.parameters(),
    ]:
        assert not parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize("method", ["zskt", "dfad", "dfq", "adi", "reverie"])
def test_3_synthesis_leaves_no_gradient_and_no_statistics_in_the_student(method: str) -> None:
    parts, _ = make(method)
    before = snapshot(parts.student)
    parts.source.next()
    assert all(p.grad is None for p in parts.student.parameters())
    assert all(torch.equal(v, before[k]) for k, v in snapshot(parts.student).items())


def test_4_the_student_trains_after_an_evaluation() -> None:
    parts, teacher = make("dfq")
    evaluate = Evaluator(parts.student, teacher, parts.dataset.open("test"), Runtime("cpu"))
    for _ in range(2):
        before = snapshot(parts.student)
        parts.distiller(parts.source.next())
        after = snapshot(parts.student)
        assert all(m.training for m in parts.student.modules())
        moved = [k for k in after if not torch.equal(before[k], after[k])]
        assert any("running_mean" in k for k in moved)
        evaluate()


def test_5_statistics_hooks_do_not_fire_in_distillation() -> None:
    parts, teacher = make("dfq")
    assert teacher is not None
    for network in (teacher, parts.distiller.teacher, parts.student):
        assert not any(m._forward_pre_hooks for m in network.modules())
    assert parts.source.synthesizer.observe.teacher(torch.rand(2, 1, 8, 8)).statistics
    assert not parts.distiller.teacher(torch.rand(2, 1, 8, 8)).statistics


def test_6_learned_parameters_of_a_loss_are_trained_and_checkpointed() -> None:
    config = plain(small("dfq"))
    config["distiller"]["losses"]["toy"] = {
        "weight": 1.0,
        "loss": {"_target_": "tests.toy.LearnedScale"},
    }
    runtime = Runtime("cpu")
    dataset = build_dataset(config, runtime)
    parts = build_parts(config, dataset, teacher_for(config, dataset), runtime)
    parts.distiller(parts.source.next()).total.backward()
    parts.optimizer.step()
    (name,) = [k for k in parts.distiller.state_dict() if "scale" in k]
    assert parts.distiller.state_dict()[name] != 0
    assert not any("scale" in k for k in parts.student.module.state_dict())


def test_7_mixed_precision_is_run_and_losses_stay_in_float32() -> None:
    parts, _ = make("dfq", "precision=bf16")
    batch = parts.source.next()
    losses = parts.distiller(batch)
    assert losses.total.dtype == torch.float32
    assert parts.source.synthesizer.observe(batch.input, None).total.dtype == torch.float32
    with Runtime("cpu", "bf16").autocast():
        assert parts.student.module(batch.input).dtype == torch.bfloat16


def test_8_a_bank_belongs_to_one_run(tmp_path: Path) -> None:
    config = small("deep_inversion", "steps=2", f"run_root={tmp_path}")
    settings = plain(config)
    teacher = teacher_for(settings, build_dataset(settings, Runtime("cpu")))
    save_network(tmp_path / "teacher.safetensors", teacher, {})
    config.teacher.checkpoint = str(tmp_path / "teacher.safetensors")

    def bank(seed: int, folder: str) -> dict[str, torch.Tensor]:
        config.seed, config.run_dir = seed, str(tmp_path / folder)
        run(config, Runtime("cpu", seed=seed))
        (saved,) = (tmp_path / folder / "checkpoints").glob("step-*/rank0.pt")
        return torch.load(saved, weights_only=True)["source"]["streams"]["bank"]

    first, second = bank(0, "a/first"), bank(1, "a/second")
    alone = bank(1, "b/alone")
    assert same(second, alone)
    assert not same(first, second)
    assert [p.name for p in (tmp_path / "a" / "first").rglob("*.png")] == ["inputs.png"]


def _losses() -> list[SynthesisLoss | TransferLoss]:
    """Every loss that there is, as its defaults are."""
    spec = InputSpec((1, 4, 4))
    modules = (generators.losses, distillers.response, distillers.attention)
    found: list[SynthesisLoss | TransferLoss] = []
    for module in modules:
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, (SynthesisLoss, TransferLoss)) and cls.__module__ == module.__name__:
                wants = inspect.signature(cls).parameters
                found.append(cls(**({"spec": spec} if "spec" in wants else {})))
    return found


@pytest.mark.parametrize("loss", _losses(), ids=lambda t: type(t).__name__)
def test_9_losses_and_gradients_are_finite_at_a_logit_gap_of_500(loss: nn.Module) -> None:
    images = torch.rand(4, 1, 4, 4, requires_grad=True)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    pattern = torch.tensor([500.0, 0.0, -500.0]) * sign
    logits = (pattern + 0 * images.sum()).requires_grad_()
    stages = {f"stage{i}": 1e3 * torch.rand(4, 2, 3, 3) * images.mean() for i in (1, 2, 3)}
    features = stages | {"pooled": torch.rand(4, 5) * images.mean()}
    student = Outputs(logits, features)
    teacher = Outputs(-logits if isinstance(loss, SynthesisLoss) else -pattern, features)
    if isinstance(loss, SynthesisLoss):
        if loss.needs_statistics:
            pytest.skip("reads no logits")
        value = loss(Synthesis(images, teacher, student))
    else:
        names = {name: name for name in features}
        loss.resolve(names, names)
        value = loss(student, teacher, Batch(images, torch.zeros(4, dtype=torch.long)))
    assert value.isfinite()
    value.backward()
    assert images.grad is None or images.grad.isfinite().all()


def test_10_the_result_is_the_last_accuracy_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.9, 0.5])
    monkeypatch.setattr(
        Evaluator, "__call__", lambda self: {"accuracy": next(values), "ece": 0.1, "agreement": 0.5}
    )
    settings = ["steps=2", "evaluations=2", f"run_dir={tmp_path / 'run'}"]
    student = run(small("scratch", *settings), Runtime("cpu"))["student"]
    assert (student["accuracy"], student["best_accuracy"]) == (0.5, 0.9)
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["student"]["accuracy"] == 0.5


def test_11_noise_differs_between_ranks_seeds_streams_and_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(seed: int, rank: int, stream: str, step: int) -> tuple[float, ...]:
        runtime = Runtime("cpu", seed=seed)
        monkeypatch.setattr(runtime, "rank", rank)
        return tuple(torch.randn(4, generator=runtime.noise(stream, step)).tolist())

    cases = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1)]
    assert len({draw(*case) for case in cases}) == len(cases)
    assert draw(*cases[0]) == draw(*cases[0])


def test_12_hooks_fire_in_compiled_networks_and_their_absence_is_noticed() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.skipped = nn.Linear(4, 3), nn.BatchNorm1d(3)
            self.skip = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.used(x)
            return x if self.skip else self.skipped(x)

    spec = InputSpec((4,), mean=(0.0,) * 4, std=(1.0,) * 4)
    view = Classifier(Skips(), spec).frozen(taps=["used"], statistics=True)
    view.module.compile(backend="eager")
    x = torch.rand(8, 4)
    for _ in range(2):
        outputs = view(x)
        assert torch.allclose(outputs.features["used"], view.module.used(x))
        assert torch.allclose(outputs.statistics[0].mean, view.module.used(x).mean(0), atol=1e-6)
    view.module.skip = True
    with pytest.raises(ValueError, match=r"some inputs and not for others \(skipped\)"):
        view(x)
