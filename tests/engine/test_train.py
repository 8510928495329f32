"""Precision, compilation, averaging and clipping from the command line: each really runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from core.runtime import Runtime
from data.spec import Batch
from engine.train import Training
from models.checkpoint import load_weights
from tests.engine.runs import checkpoint, differing

SHORT = ["steps=2", "evaluations=1", "checkpoints=1"]


def student(path: Path, arguments: list[str]) -> dict[str, torch.Tensor]:
    assert train.main([*arguments, f"run_dir={path}"]) == 0
    assert json.loads((path / "result.json").read_text())["status"] == "finished"
    state, _ = load_weights(path / "student.safetensors")
    assert all(v.isfinite().all() for v in state.values())
    return state


@pytest.mark.parametrize("method", ["reverie", "kd", "deep_inversion"])
def test_bf16(method: str, tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *SHORT, f"method={method}"]
    if method == "deep_inversion":
        arguments += ["synthesizer.iterations=2", "synthesizer.size=16"]
    full = student(tmp_path / "fp32", arguments)
    half = student(tmp_path / "bf16", [*arguments, "precision=bf16"])
    assert differing(full, half)
    for name, value in half.items():
        assert value.dtype == full[name].dtype  # weights stay as they are; the arithmetic is bf16
        torch.testing.assert_close(value.float(), full[name].float(), rtol=0.1, atol=0.1)
    result = json.loads((tmp_path / "bf16" / "result.json").read_text())
    assert result["cost"]["precision"] == "bf16"


@pytest.mark.parametrize("method", ["reverie", "kd"])
def test_compile_with_a_backend_that_only_traces(
    method: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as without, since the eager backend runs the same kernels."""
    compiled, compile_module = [], torch.nn.Module.compile

    def trace(self: torch.nn.Module) -> None:
        compiled.append(self)
        compile_module(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    arguments = [*tiny, *SHORT, f"method={method}"]
    plain = student(tmp_path / "plain", arguments)
    assert not compiled
    traced = student(tmp_path / "traced", [*arguments, "compile=true"])
    assert len(compiled) >= (4 if method == "reverie" else 2)
    assert not differing(plain, traced)


@pytest.mark.slow
def test_compile_for_real(tiny: list[str], tmp_path: Path) -> None:
    plain = student(tmp_path / "plain", [*tiny, *SHORT])
    compiled = student(tmp_path / "compiled", [*tiny, *SHORT, "compile=true"])
    for name, value in compiled.items():
        torch.testing.assert_close(value.float(), plain[name].float(), rtol=1e-2, atol=1e-2)


def test_the_averaged_student_is_what_is_saved(tiny: list[str], tmp_path: Path) -> None:
    saved = student(tmp_path / "run", [*tiny, "ema=0.9"])
    state = checkpoint(tmp_path / "run")
    place = "teachers.average.averaged.module."
    average = {
        name.removeprefix(place): value
        for name, value in state["distiller"].items()
        if name.startswith(place)
    }
    assert not differing(average, saved)
    trained = state["distiller"]["student.module.linear.weight"]
    assert not torch.equal(trained, saved["linear.weight"])


def test_clipping_bounds_the_step(tiny: list[str], tmp_path: Path) -> None:
    sgd = ["method=kd", "optimizer.weight_decay=0.0", "optimizer.momentum=0.0", "steps=1"]
    sgd += ["optimizer.nesterov=false", "schedule.warmup=0.0", "optimizer.lr=1.0"]
    arguments = [*tiny, *SHORT, *sgd]
    start = student(tmp_path / "start", [*arguments, "clip=1e-12"])  # a step of next to nothing
    end = student(tmp_path / "end", [*arguments, "clip=0.25"])
    moved = [end[k] - start[k] for k in start if "running" not in k and "num_batches" not in k]
    norm = torch.stack([m.norm() for m in moved]).norm()
    assert float(norm) == pytest.approx(0.25, rel=1e-3)


def test_noise_is_a_function_of_seed_rank_stream_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(seed: int, rank: int, stream: str, step: int) -> tuple[float, ...]:
        runtime = Runtime("cpu", seed=seed)
        runtime.rank = rank
        return tuple(torch.rand(3, generator=runtime.noise(stream, step)).tolist())

    keys = [(s, r, n, t) for s in (0, 1) for r in (0, 1) for n in ("a", "b") for t in (0, 1, 11)]
    assert len({draw(*key) for key in keys}) == len(keys)
    torch.rand(5)
    assert draw(*keys[3]) == draw(*keys[3])


def test_the_initial_weights_depend_on_the_seed_alone(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *SHORT, "optimizer.lr=0.0"]
    one = student(tmp_path / "one", arguments)
    torch.rand(100)
    two = student(tmp_path / "two", [*arguments, "overwrite=true"])
    three = student(tmp_path / "three", [*arguments, "seed=1"])
    assert not differing(one, two)
    assert not torch.equal(one["linear.weight"], three["linear.weight"])


def test_what_joins_unequal_features_is_said(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student(tmp_path / "run", [*tiny, *SHORT, "method=kd", "loss=fitnet"])
    assert "\nadapter: fitnet: student 4x4x4 to teacher 8x4x4" in capsys.readouterr().out


def test_a_device_that_is_full_is_said_without_a_traceback(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}"]
    learn = Training._learn

    def full(self: Training, network: torch.nn.Module, batch: Batch, step: int) -> None:
        if step == 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        learn(self, network, batch, step)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_learn", full)
        assert train.main(arguments) == 1
    said = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in said
    assert "smaller batch_size" in said
    assert checkpoint(tmp_path / "run")["step"] == 8
    assert train.main(arguments) == 0
    assert "resumed at step 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s["distiller"]["teachers.average._extra_state"].pop("updates"), "'updates'"),
        (lambda state: state["distiller"].popitem(), "Missing key"),
        (lambda state: state["optimizer"]["param_groups"].pop(), "parameter groups"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_and_left_alone(
    change: Callable[[dict], object],
    named: str,
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = [*tiny, "ema=0.9", f"run_dir={tmp_path / 'run'}"]
    assert train.main(arguments) == 0
    (tmp_path / "run" / "result.json").unlink()
    (file,) = (tmp_path / "run" / "checkpoints").glob("step-*/rank0.pt")
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    before = file.read_bytes()
    assert train.main(arguments) == 1
    said = capsys.readouterr().err
    assert "does not fit" in said
    assert named in said
    assert "overwrite=true" in said
    assert "Traceback" not in said
    assert file.read_bytes() == before
    assert train.main([*arguments, "overwrite=true"]) == 0
