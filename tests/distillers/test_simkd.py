"""The teacher's classifier, used again: in a whole run's parts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from core.runtime import Runtime
from data.spec import InputSpec
from engine.config import compose, plain
from engine.networks import build_network
from engine.parts import Parts, build_dataset, build_parts
from models.checkpoint import save_network
from models.classifier import Classifier
from models.pretrained import freeze, load_classifier

DIGITS = ("teacher.model.width=6", "student.model.backbone.width=4", "student.model.features=12")


def make(*overrides: str, student: str = "simkd") -> Parts:
    arguments = [
        "method=kd",
        "loss=simkd",
        "~distiller.losses.kd",
        "~distiller.losses.cross_entropy",
    ]
    arguments += [f"student={student}", "batch_size=8", "device=cpu", "optimizer.lr=0.01"]
    config = plain(compose([*arguments, *overrides]))
    runtime = Runtime("cpu")
    dataset = build_dataset(config, runtime)
    torch.manual_seed(7)
    module = build_network(config["teacher"]["model"], dataset.shape, dataset.classes)
    spec = InputSpec(dataset.shape, (0.0, 1.0), (0.3,), (0.37,))
    teacher = Classifier(module, spec, dataset.classes).train()
    with torch.no_grad():
        teacher(torch.rand(16, *dataset.shape))
    return build_parts(config, dataset, runtime.prepare(freeze(teacher)), runtime)  # type: ignore[arg-type]


def learn(parts: Parts, steps: int) -> None:
    for _ in range(steps):
        parts.distiller(parts.source.next()).total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.distiller.updated()


def heads(parts: Parts) -> list[nn.Linear]:
    assert parts.teacher is not None
    return [n.module.get_submodule("linear") for n in (parts.result, parts.teacher)]  # type: ignore[misc]


@pytest.mark.parametrize("ema", ["ema=0", "ema=0.9"])
def test_all_but_the_classifier_learns(ema: str) -> None:
    parts = make(*DIGITS, ema)
    before = {n: p.detach().clone() for n, p in parts.student.module.named_parameters()}
    learn(parts, 3)
    for name, p in parts.student.module.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("linear"), name
    ours, theirs = heads(parts)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    assert ours.weight.data_ptr() != theirs.weight.data_ptr()
    trained = {id(p) for group in parts.optimizer.param_groups for p in group["params"]}
    assert id(parts.student.module.linear.weight) not in trained  # type: ignore[union-attr]


def test_the_loss_is_the_distance_of_the_last_maps() -> None:
    parts = make(*DIGITS)
    assert parts.teacher is not None
    batch = parts.source.next()
    losses = parts.distiller(batch)
    with torch.no_grad():
        student = parts.student(batch.input).features["projected"]
        teacher = parts.teacher.frozen(["stage2"])(batch.input).features["stage2"]
    assert student.shape == teacher.shape == (8, 12, 2, 2)
    torch.testing.assert_close(losses.total.detach(), (student - teacher).square().mean())


def test_of_two_sizes_the_larger_is_pooled() -> None:
    backbone = "student.model.backbone={_target_: models.wrn.WideResNet, depth: 10, width: 1}"
    parts = make("teacher.model.width=6", backbone, "student.model.features=12", "data.size=16")
    assert parts.student.taps == ("projected",)
    assert parts.distiller(parts.source.next()).total.isfinite()


def test_state_and_file_have_the_classifier(tmp_path: Path) -> None:
    first = make(*DIGITS)
    learn(first, 2)
    second = make(*DIGITS)
    second.distiller.load_state_dict(copy.deepcopy(first.distiller.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    x = torch.rand(4, *first.student.spec.shape)
    first.student.eval()
    second.student.eval()
    assert torch.equal(first.student(x).logits, second.student(x).logits)
    save_network(tmp_path / "student.safetensors", first.result, {})
    config = plain(compose(["student=simkd", *DIGITS]))
    fresh = build_network(config["student"]["model"], (1, 8, 8), first.student.classes)
    again = load_classifier(fresh, tmp_path / "student.safetensors").eval()
    torch.testing.assert_close(again(x).logits, first.student(x).logits)  # of another layout


def test_a_preactivated_teacher_is_read_after_its_last_rectifier() -> None:
    wrn = ("teacher=wrn_16_1", "student.model.features=64")
    with pytest.raises(ValueError, match=r"SimKD .*'stage3' is another"):
        make(*wrn)
    taps = "distiller.losses.simkd.taps=[{student: projected, teacher: relu}]"
    assert make(*wrn, taps).distiller(make(*wrn, taps).source.next()).total.isfinite()


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"last map has 12: pass student.model.features=12"):
        make(*DIGITS, "student.model.features=10")
    with pytest.raises(ValueError, match="pass student=simkd"):
        make("teacher.model.width=6", "student.model.width=4", student="digits_cnn_small")
