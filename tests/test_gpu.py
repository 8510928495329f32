"""What only a CUDA device can show: `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_methods import BEYOND
from core.runtime import Runtime, Stopped
from data.spec import InputSpec
from engine.config import plain
from engine.parts import build_dataset
from engine.run import RunDirectory
from engine.train import Training, run
from generators.store import Store
from models.checkpoint import load_weights, save_network
from tests.cycles import of_method
from tests.modalities import DATA, parts_of
from tests.test_contracts import METHODS, small, teacher_for
from tests.test_losses import TERMS, make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_makes_the_device_wait(method: str, precision: str) -> None:
    """Not in an update or a round either, nor in clip, EMA, meter and what a source is told."""
    cycles = of_method(method, "device=cuda", f"precision={precision}")
    _second_without_waiting(cycles.run)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("method", BEYOND)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_on_another_modality_makes_the_device_wait(
    method: str, kind: str, precision: str
) -> None:
    runtime = Runtime("cuda", precision=precision)
    parts = parts_of(kind, f"method={method}", runtime=runtime)

    def cycle() -> None:
        for _ in range(parts.source.student_steps):  # type: ignore[attr-defined]
            losses = parts.distiller(batch := parts.source.next())
            losses.total.backward()
            parts.optimizer.step()
            parts.optimizer.zero_grad()
            parts.distiller.updated()
            parts.source.learned(batch, losses)

    _second_without_waiting(cycle)


def _second_without_waiting(step: Callable[[], None]) -> None:
    """The first one may set things up."""
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_wait_is_an_error_there() -> None:
    """Or the test above could not fail."""
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="synchroniz"):
        _second_without_waiting(lambda: x.sum().item())  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("loss", TERMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_loss_makes_the_device_wait(loss: str, precision: str) -> None:
    parts = make(loss, "device=cuda", f"precision={precision}")

    def step() -> None:
        parts.distiller(parts.source.next()).total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()

    _second_without_waiting(step)


def test_settings_reach_the_device() -> None:
    """TF32 keeps 10 bits of the mantissa of what it multiplies."""
    x = torch.full((1, 8, 8, 8), 1 + 2**-14, device="cuda")
    exact = torch.full((8, 8, 1, 1), 1.0, device="cuda")
    found = []
    for tf32 in (True, False):
        Runtime("cuda", tf32=tf32)
        found.append((torch.nn.functional.conv2d(x, exact) - 8).abs().max().item())
    assert found[1] == 8 * 2**-14


@pytest.mark.parametrize("method", ["reverie", "deep_inversion"])
def test_a_resumed_run_ends_in_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(method, "device=cuda", "steps=12", "checkpoints=4", f"run_dir={tmp_path / 'a'}")
    settings = plain(config)
    teacher = teacher_for(settings, build_dataset(settings, Runtime("cpu")))
    save_network(tmp_path / "teacher.safetensors", teacher, {})
    config.teacher.checkpoint = str(tmp_path / "teacher.safetensors")
    run(config, Runtime("cuda"))

    config.run_dir = str(tmp_path / "b")
    learn = Training._learn

    def interrupted(self: Training, network: torch.nn.Module, batch: object, step: int) -> None:
        if step == 7:
            raise Stopped
        learn(self, network, batch, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_learn", interrupted)
    with pytest.raises(Stopped):
        run(config, Runtime("cuda"))
    monkeypatch.setattr(Training, "_learn", learn)
    assert RunDirectory(config, Runtime("cuda")).checkpoints.whole()
    run(config, Runtime("cuda"))
    a, b = (load_weights(tmp_path / d / "student.safetensors")[0] for d in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_bank_on_the_host_is_the_bank_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the images do not fit beside the networks."""
    spec, device = InputSpec((1, 8, 8)), torch.device("cuda", torch.cuda.current_device())
    on_device = Store(spec, 20, device, "reservoir", answers=3)
    with monkeypatch.context() as patched:
        patched.setattr("generators.store._place", lambda size, device: torch.device("cpu"))
        on_host, restored = (Store(spec, 20, device, "reservoir", answers=3) for _ in range(2))
    assert on_host.images.device.type == on_host.answers.device.type == "cpu"
    noise = torch.Generator("cuda").manual_seed(0)
    for i in range(3):
        images = torch.rand(8, *spec.shape, device=device, generator=noise)
        for bank in (on_device, on_host):
            answers = images.flatten(1)[:, :3]
            bank.add(images, torch.arange(8, device=device), i, noise.clone_state(), answers)
    restored.load_state_dict(on_host.state_dict())
    drawn = [bank.sample(16, noise.clone_state()) for bank in (on_device, on_host, restored)]
    for images, labels, index in drawn:
        assert images.device == device
        assert torch.equal(images, drawn[0][0])
        assert torch.equal(labels, drawn[0][1])
        assert torch.equal(index, drawn[0][2])
    given = [bank.answers_to(drawn[0][2]) for bank in (on_device, on_host, restored)]
    assert given[0].device == given[1].device == device
    assert torch.equal(given[0], given[1])
    assert torch.equal(given[0], given[2])
