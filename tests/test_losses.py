"""Every transfer loss that ``loss=`` can add is held to the same contract, with every source.

Each is built by the engine as a user would, between networks whose features differ in shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.runtime import Runtime
from data.spec import Batch, InputSpec
from engine.choices import ROOT
from engine.config import compose, plain
from engine.networks import build_network
from engine.parts import Parts, build_dataset, build_parts
from models.classifier import Classifier
from models.pretrained import freeze

TERMS = sorted(p.stem for p in (ROOT / "loss").glob("*.yaml"))
SPECIAL = {  # what a loss needs beside its name
    "simkd": [
        *("student=simkd", "teacher.model.width=6", "student.model.backbone.width=4"),
        "student.model.features=12",
    ],
    "minilm": ["teacher=vit_digits", "student=vit_digits", "student.model.embed_dim=32"],
}
ON_MAPS = ["teacher.model.width=6", "student.model.width=4"]


def make(
    loss: str, *overrides: str, kind: str = "kd", seed: int = 0, pair: list[str] | None = None
) -> Parts:
    arguments = [f"method={kind}", f"loss={loss}", "batch_size=8", "device=cpu", f"seed={seed}"]
    arguments.append("optimizer.lr=0.01")  # without the warm-up that a run has
    if kind != "kd":
        arguments += ["generator.channels=8"]
    networks = SPECIAL.get(loss, ON_MAPS) if pair is None else pair
    config = plain(compose([*arguments, *networks, *overrides]))
    device, precision, compiled = (config[key] for key in ("device", "precision", "compile"))
    runtime = Runtime(device, precision, compiled, config["seed"])
    dataset = build_dataset(config, runtime)
    torch.manual_seed(7)
    module = build_network(config["teacher"]["model"], dataset.shape, dataset.classes)
    teacher = Classifier(module, InputSpec(dataset.shape, (0.0, 1.0), (0.3,), (0.37,)))
    teacher.classes = dataset.classes
    teacher.train()
    with torch.no_grad():
        teacher(torch.rand(16, *dataset.shape))
    return build_parts(config, dataset, runtime.prepare(freeze(teacher)), runtime)  # type: ignore[arg-type]


def learn(parts: Parts, steps: int, start: int = 0) -> list[Tensor]:
    values = []
    for step in range(start, start + steps):
        parts.distiller.objective.at(step / 10)
        batch = parts.source.next()
        losses = parts.distiller(batch)
        losses.total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.source.learned(batch, losses)
        values.append(losses.total.detach())
    return values


def own(parts: Parts) -> dict[str, nn.Parameter]:
    """What the losses own and want trained."""
    named = parts.distiller.objective.named_parameters()
    return {name: p for name, p in named if p.requires_grad}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(params=TERMS)
def loss(request: pytest.FixtureRequest) -> str:
    return request.param


def test_queries_of_the_teacher(loss: str) -> None:
    """One for each input, unless the loss shows more of them; none while parts are built."""
    parts = make(loss)
    assert parts.counts()["teacher_queries"] == 0
    learn(parts, 3)
    assert parts.counts()["teacher_queries"] == 3 * 8 * {"hsakd": 4, "sarc": 2}.get(loss, 1)


def test_gradients_reach_student_and_loss_and_not_the_teacher(loss: str) -> None:
    parts = make(loss)
    before = copy.deepcopy(parts.teacher.state_dict()) if parts.teacher else {}
    parts.distiller.objective.at(0.05)
    losses = parts.distiller(parts.source.next())
    assert losses.total.isfinite()
    losses.total.backward()
    gradients = [p.grad for p in parts.student.parameters() if p.requires_grad]
    assert any(g is not None and g.any() for g in gradients)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own(parts).values())
    assert parts.teacher is not None
    assert all(p.grad is None for p in parts.teacher.parameters())
    assert same(before, parts.teacher.state_dict())
    ours = {id(p) for p in parts.distiller.parameters() if p.requires_grad}
    assert not ours & {id(p) for p in parts.teacher.parameters()}
    student = {id(p) for p in parts.student.parameters()}
    assert not student & {id(p) for p in own(parts).values()}


@pytest.mark.parametrize("loss", ["at", "fitnet", "feature_only", "rkd"])
def test_without_a_loss_on_logits_every_parameter_has_a_gradient(loss: str) -> None:
    """DDP waits for one from each, those behind the last tap included."""
    parts = make(loss, "~distiller.losses.kd", "~distiller.losses.cross_entropy")
    parts.distiller(parts.source.next()).total.backward()
    missing = [name for name, p in parts.student.named_parameters() if p.grad is None]
    assert not missing


def test_what_a_loss_owns_is_trained_and_survives_a_round_trip(loss: str) -> None:
    first = make(loss)
    fresh = {name: p.detach().clone() for name, p in own(first).items()}
    learn(first, 3, start=1)
    for name, p in own(first).items():
        assert not torch.equal(p, fresh[name]), f"{name} stood still"
    torch.manual_seed(99)
    second = make(loss, seed=0)
    for part in ("source", "distiller", "optimizer"):
        state = copy.deepcopy(getattr(first, part).state_dict())
        getattr(second, part).load_state_dict(state)
    one = learn(first, 3, start=4)
    torch.rand(5)  # a loss that draws from the global generator is found out
    two = learn(second, 3, start=4)
    assert same(one, two)
    assert same(first.distiller.state_dict(), second.distiller.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_synthesized_inputs(loss: str, precision: str) -> None:
    parts = make(loss, f"precision={precision}", kind="dfad")  # asks no BatchNorm of a teacher
    assert all(value.isfinite() for value in learn(parts, 2))
    assert parts.counts()["real_training_inputs_read"] == 0


def test_bf16_on_real_data_keeps_losses_in_float32(loss: str) -> None:
    parts = make(loss, "precision=bf16")
    losses = parts.distiller(parts.source.next())
    assert losses.total.dtype == torch.float32
    assert all(value.isfinite() for value in learn(parts, 2))


def test_compiled_networks_give_the_same_losses(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = learn(make(loss), 2)
    compiled = nn.Module.compile

    def eager(module: nn.Module, **settings: Any) -> None:
        compiled(module, **{**settings, "backend": "eager"})

    monkeypatch.setattr(nn.Module, "compile", eager)
    parts = make(loss, "compile=true")
    parts.distiller.runtime.compile(parts.student.module)
    torch.testing.assert_close(learn(parts, 2), expected, rtol=1e-4, atol=1e-5)


def test_extreme_and_uniform_batches(loss: str) -> None:
    """A logit gap of 500 on both sides, and a batch of one class."""
    parts = make(loss)
    assert parts.teacher is not None
    for network in (parts.student, parts.distiller.teacher):
        if network is None:
            continue
        path = network.module.taps["logits"]  # type: ignore[index]
        head = network.module.get_submodule(path)
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
            head.bias[0 if network is parts.student else 1] = 500.0
    x = parts.source.next().input
    batch = Batch(x, torch.full((len(x),), 3), torch.arange(len(x)))
    losses = parts.distiller(batch)
    assert losses.total.isfinite()
    losses.total.backward()
    for p in parts.distiller.parameters():
        assert p.grad is None or p.grad.isfinite().all()


def test_what_joins_two_shapes_is_said(loss: str) -> None:
    """Wherever a loss has something to learn between features of different shapes."""
    parts = make(loss)
    told = parts.distiller.adaptations
    for name, weighted in parts.distiller.objective.losses.items():
        lines = [line for line in told if line.startswith(f"{name}: student ")]
        learns = weighted.loss.wants_shapes and weighted.loss.teacher_taps and own(parts)
        assert bool(lines) == bool(learns), told


TOKENS = {"vit": ["teacher=vit_digits", "student=digits_cnn_small"]}
TOKENS["cnn"] = ["teacher=digits_cnn", "student=vit_digits"]
APART = {  # what is no question of shapes
    "catkd": "name the right one in taps",  # the ViT's classifier reads its class token
    "minilm": "no tap 'attention'",
    "simkd": "pass student=simkd",
}


@pytest.mark.parametrize("teacher", TOKENS)
def test_between_a_cnn_and_a_vit(loss: str, teacher: str) -> None:
    """Maps beside tokens, either way: a step is taken, or the error says what to do."""
    if loss in APART:
        with pytest.raises(ValueError, match=APART[loss]):
            make(loss, pair=TOKENS[teacher])
        return
    parts = make(loss, pair=TOKENS[teacher])
    parts.distiller.objective.at(0.05)
    losses = parts.distiller(parts.source.next())
    losses.total.backward()
    gradients = [p.grad for p in parts.distiller.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in [losses.total, *gradients])
    assert any(g.any() for g in gradients)


class NeverWaiting(TorchDispatchMode):
    """Refuses the operations whose result a program on CUDA has to wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = [i for i in indices if isinstance(i, Tensor) and i.dtype == torch.bool]
        if name in self.WAITS or masks:
            raise AssertionError(f"{name} makes the device wait")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("progress", [0.05, 0.5])
def test_no_loss_makes_the_device_wait(loss: str, progress: float) -> None:
    """As far as a CPU can tell; test_gpu.py has CUDA say it."""
    parts = make(loss)
    parts.distiller.objective.at(progress)
    batch = parts.source.next()
    with NeverWaiting():
        parts.distiller(batch).total.backward()


@pytest.mark.parametrize("wait", [Tensor.item, lambda x: x[x > 0], Tensor.nonzero, Tensor.unique])
def test_waiting_is_found_out(wait: Callable[[Tensor], Any]) -> None:
    with NeverWaiting(), pytest.raises(AssertionError, match="makes the device wait"):
        wait(torch.ones(1))
