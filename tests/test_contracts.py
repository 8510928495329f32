"""Every method configuration is held to the same contract; a new YAML is found by itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from core.build import build
from core.runtime import Runtime
from data.dataset import DataFreeError
from data.spec import InputSpec
from engine.catalogue import methods
from engine.choices import ROOT
from engine.config import compose, plain
from engine.networks import build_network
from engine.parts import Parts, build_dataset, build_parts
from engine.teacher import networks_of
from engine.train import run
from engine.warm_start import copies_teacher
from generators.mixture import Mixture
from generators.rounds import Rounds
from models.checkpoint import save_network
from models.classifier import Classifier
from models.pretrained import freeze

METHODS = sorted(p.stem for p in (ROOT / "method").glob("*.yaml"))
LEARNING = [name for name, data, _ in methods() if data == "none" and name != "noise"]
GENERATORS = sorted(p.stem for p in (ROOT / "generator").glob("*.yaml"))
SMALL = {"synthesizer.iterations": 3, "synthesizer.size": 8, "source.streams.bank.capacity": 32}


def small(method: str, *overrides: str) -> DictConfig:
    """A configuration of the method that runs in no time."""
    arguments = [f"method={method}", "batch_size=8", "device=cpu", "teacher.model.width=4"]
    config = compose([*arguments, "student.model.width=4", "generator.channels=8", *overrides])
    for key, value in SMALL.items():
        if OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, value)
    return config


def teacher_for(config: dict[str, Any], dataset: Any) -> Classifier:
    module = build_network(config["teacher"]["model"], dataset.shape, dataset.classes)
    spec = InputSpec(dataset.shape, (0.0, 1.0), (0.3055,), (0.3759,))
    teacher = Classifier(module, spec, dataset.classes)
    teacher.train()
    with torch.no_grad():  # running statistics that are not those of a fresh network
        for _ in range(3):
            teacher(torch.rand(16, *spec.shape))
    return freeze(teacher)


def others_for(config: dict[str, Any], dataset: Any) -> dict[str, Classifier]:
    """Untrained networks in the place of a run's further teachers."""
    return {
        name: teacher_for({"teacher": node}, dataset) for name, node in networks_of(config).items()
    }


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def make(method: str, *overrides: str) -> tuple[Parts, Classifier | None]:
    config = plain(small(method, *overrides))
    runtime = Runtime("cpu", config["precision"], config["compile"], config["seed"])
    dataset = build_dataset(config, runtime)
    teacher = teacher_for(config, dataset) if config["needs_teacher"] else None
    return build_parts(config, dataset, teacher, runtime, others_for(config, dataset)), teacher


def snapshot(network: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items() if isinstance(v, Tensor)}


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_batches_have_the_shape_and_the_range_of_the_specification(method: str) -> None:
    parts, _ = make(method)
    for _ in range(2):
        batch = parts.source.next()
        assert batch.input.shape == (8, 1, 8, 8)
        assert batch.input.isfinite().all()
        assert not batch.input.requires_grad
        if batch.label is not None:
            assert batch.label.shape == (8,)
            assert batch.label.dtype == torch.int64


def test_making_a_batch_changes_nothing_of_the_student(method: str) -> None:
    parts, _ = make(method)
    parts.student.train()
    losses = parts.distiller(parts.source.next())
    losses.total.backward()
    before = snapshot(parts.student)
    gradients = [p.grad.clone() for p in parts.student.parameters() if p.grad is not None]
    for _ in range(3):
        parts.source.next()
    assert same(before, snapshot(parts.student))
    assert same(gradients, [p.grad for p in parts.student.parameters()])
    assert all(m.training for m in parts.student.modules())


def test_gradients_reach_the_student_and_nothing_else(method: str) -> None:
    parts, teacher = make(method)
    held = snapshot(teacher) if teacher else {}
    losses = parts.distiller(parts.source.next())
    assert losses.total.isfinite()
    assert all(v.isfinite() and not v.requires_grad for v in losses.values.values())
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parts.student.parameters())
    assert any(p.grad.abs().sum() > 0 for p in parts.student.parameters())
    if teacher:
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert same(held, snapshot(teacher))
        assert not any(m.training for m in teacher.modules())
        assert not set(map(id, teacher.parameters())) & set(map(id, parts.distiller.parameters()))
    if isinstance(parts.source, Mixture) and (generator := parts.source.synthesizer.generator):
        assert all(p.grad is None or not p.grad.any() for p in generator.parameters())


@pytest.mark.parametrize("method", LEARNING, indirect=True)
def test_a_synthesizer_learns(method: str) -> None:
    parts, _ = make(method)
    source: Any = parts.source
    synthesizer = source.synthesizer
    rounds = isinstance(synthesizer, Rounds)
    lasting = synthesizer.variable if rounds else synthesizer.generator
    learning = [(name, p, p.detach().clone()) for name, p in lasting.named_parameters()]
    if rounds:  # each optimises pixels, latents, or a generator of its own
        optimizer = synthesizer.optimizer

        def recorded(groups: Any) -> torch.optim.Optimizer:
            made = optimizer(groups)
            given = [p for group in made.param_groups for p in group["params"]]
            learning.extend(
                (f"of the round: {i}", p, p.detach().clone()) for i, p in enumerate(given)
            )
            return made

        synthesizer.optimizer = recorded
    source.next()
    synthesizer.update(0.5)  # a second one: at the start of a warm-up the rate is 0
    assert learning
    still = [name for name, p, before in learning if torch.equal(p, before)]
    assert not still, f"stood still: {still}"


def test_state_survives_a_round_trip(method: str) -> None:
    source = small(method).source
    often = []  # a round or an update after the restoration too; an experience needs more batches
    if source.get("student_steps", 1) > 2 and "experience" not in source.streams:
        often = ["source.student_steps=2"]
    first, _ = make(method, *often)
    assert first.counts()["teacher_queries"] == 0, "building asks a teacher nothing that counts"
    learn(first, 3)
    torch.manual_seed(99)  # a source that draws from the global generator is found out
    second, _ = make(method, *often, "seed=0")
    for name in ("source", "distiller", "optimizer"):
        getattr(second, name).load_state_dict(copy.deepcopy(getattr(first, name).state_dict()))
    learn(first, 3)
    torch.rand(7)
    learn(second, 3)
    assert same(first.source.state_dict(), second.source.state_dict())
    assert same(snapshot(first.distiller), snapshot(second.distiller))
    assert first.counts() == second.counts()


def learn(parts: Parts, steps: int) -> None:
    for _ in range(steps):
        batch = parts.source.next()
        losses = parts.distiller(batch)
        losses.total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.source.learned(batch, losses)


def test_a_data_free_method_cannot_open_the_training_split(method: str) -> None:
    config = plain(small(method))
    dataset = build_dataset(config, Runtime("cpu"))
    if config["data_free"]:
        for split in ("train", "val"):
            with pytest.raises(DataFreeError, match="data-free"):
                dataset.open(split)
    else:
        assert len(dataset.open("train")) == 1437


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_steps_run_to_a_result(method: str, precision: str, tmp_path: Path) -> None:
    settings = ["steps=2", f"run_dir={tmp_path / 'run'}", f"precision={precision}"]
    config = small(method, *settings)
    settings = plain(config)
    if settings["needs_teacher"]:
        runtime = Runtime("cpu")
        teacher = teacher_for(settings, build_dataset(settings, runtime))
        save_network(tmp_path / "teacher.safetensors", teacher, {})
        config.teacher.checkpoint = str(tmp_path / "teacher.safetensors")
        for name in networks_of(settings):
            config.teachers[name].checkpoint = config.teacher.checkpoint
    result = run(config, Runtime("cpu", precision))
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["status"] == "finished"
    assert 0 <= result["student"]["accuracy"] <= 1
    read, made = (result["cost"][k] for k in ("real_training_inputs_read", "images_synthesized"))
    rows = 16 * (1 + len(settings["source"].get("pairs") or {}))
    assert (read == 0 and made > 0) if settings["data_free"] else (read == rows and made == 0)
    asked = settings["needs_teacher"] and not copies_teacher(settings)  # which it is for, in c2kd
    assert (result["cost"]["teacher_queries"] > 0) == asked


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 28, 20)])
def test_generators_make_inputs_in_range(name: str, shape: tuple[int, ...]) -> None:
    node = plain(compose([f"generator={name}"]))["generator"]
    spec = InputSpec(shape, (-1.0, 2.0), (0.0,) * shape[0], (1.0,) * shape[0])
    generator = build(node, spec=spec, num_classes=5)
    y = torch.arange(4) if generator.conditional else None
    x = generator(torch.randn(4, generator.latent_size), y)
    assert x.shape == (4, *shape)
    assert x.min() >= -1
    assert x.max() <= 2
    x.sum().backward()
    assert all(p.grad is not None for p in generator.parameters())


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "experiment").glob("*.yaml")))
def test_experiments_compose_and_still_take_overrides(name: str) -> None:
    config = compose([f"experiment={name}", "student=wrn_16_2", "steps=7"])
    assert config.steps == 7
    assert config.student.model.width == 2
    assert config.choices.experiment == name
