"""The first look at a GPU, as far as a CPU can take it: a renamed part breaks these tests."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_methods
from benchmarks.gpu import Job
from benchmarks.step_time import DEFAULTS
from data.spec import InputSpec
from engine.config import compose
from models.classifier import Classifier
from models.pretrained import save_network
from models.resnet_cifar import resnet_cifar


def options(tmp_path: Path, **more: Any) -> argparse.Namespace:
    settings: dict[str, Any] = {"part": "smoke", "out": tmp_path / "out", "runs": tmp_path / "runs"}
    settings |= {"data": None, "teacher": None, "device": "cpu", "steps": 6000, "dry_run": False}
    return argparse.Namespace(**settings | more)


def jobs(tmp_path: Path, **more: Any) -> dict[str, Job]:
    given = options(tmp_path, data=tmp_path / "c.npz", teacher=tmp_path / "t.safetensors", **more)
    return {job.name: job for part in gpu.PARTS.values() for job in part(given)}


def overrides(job: Job) -> list[str]:
    """Of a dry run, which only adds to those of a real one."""
    found = [c for c in [*job.command[1:], *job.tiny] if "=" in c]
    return [*DEFAULTS, *found] if job.command[0] != "train.py" else found


RUNS = ["dfq", "wrn", "nayer", "plain_step", "profile", "step_time-compiled"]
RUNS += [f"step_time-{name}" for name in gpu.STEP_TIMES]


@pytest.mark.parametrize("name", RUNS)
def test_commands_compose(name: str, tmp_path: Path) -> None:
    job = jobs(tmp_path)[name]
    assert (gpu.ROOT / job.command[0]).is_file()
    config = compose(overrides(job))
    assert config.device == "cpu"
    assert config.batch_size <= 8


def test_every_other_job_is_a_script_that_is_there(tmp_path: Path) -> None:
    others = {name: job for name, job in jobs(tmp_path).items() if name not in RUNS}
    assert list(others) == ["machine", "methods", "test_gpu"]
    files = [c for job in others.values() for c in job.command if c.endswith(".py")]
    assert files == ["benchmarks/gpu_machine.py", "benchmarks/gpu_methods.py", "tests/test_gpu.py"]
    assert all((gpu.ROOT / file).is_file() for file in files)


def test_what_is_not_given_or_takes_too_long_is_said(tmp_path: Path) -> None:
    """The report is there after each job, and what started by a job ends with it."""
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    slow = f"import subprocess, sys; print('so far', flush=True); child = {child!r}; "
    slow += "subprocess.run([sys.executable, '-c', child])"
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text("{}")
    given = options(tmp_path)
    todo = [
        Job("missing", ["-c", "raise SystemExit(3)"], 60, needs=("data", "teacher")),
        Job("failing", ["-c", "raise SystemExit(3)"], 60),
        Job("slow", ["-c", slow], 1.5),
        Job("good", ["-c", "print(6 * 7)"], 60, run=run),
    ]
    assert gpu.run_all(todo, given, time.monotonic() + 100) == 1
    report = {e["job"]: e for e in json.loads((tmp_path / "out" / "smoke.json").read_text())}
    assert [e["status"] for e in report.values()] == [
        "left out: needs --data and --teacher",
        "failed: exit code 3",
        "stopped: 2 s were not enough",
        "finished",
    ]
    assert report["slow"]["tail"] == ["so far"]
    assert report["good"]["tail"] == ["42"]
    assert (tmp_path / "out" / "good.json").read_text() == "{}"
    assert gpu.run_all(todo[1:], given, time.monotonic() + 20) == 0
    report = {e["job"]: e for e in json.loads((tmp_path / "out" / "smoke.json").read_text())}
    assert {e["status"] for e in report.values()} == {"left out: no time left"}
    time.sleep(1)
    assert not mark.exists()


def test_packages_may_lie_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/deps")
    assert gpu.environment(tmp_path)["PYTHONPATH"] == f"{gpu.ROOT}:/deps"
    monkeypatch.delenv("PYTHONPATH")
    assert gpu.environment(tmp_path)["PYTHONPATH"] == str(gpu.ROOT)


def test_a_methods_short_run_has_the_parts_of_a_long_one(tmp_path: Path) -> None:
    config = gpu_methods.settings("fast_dfkd", device="cpu", steps=7, runs=tmp_path)
    assert (config.steps, config.synthesizer.iterations, config.source.warmup) == (7, 5, 1)
    assert config.teacher.checkpoint == str(tmp_path / "image" / "student.safetensors")


def test_cases_of_other_modalities_compose(tmp_path: Path) -> None:
    known = gpu_methods.cases()
    assert {kind for kind, _ in known.values()} == set(gpu_methods.KINDS)
    gpu_methods.write_texts(tmp_path / "texts.csv")
    for case in ("cmi-text", "reverie-fourier"):
        config = gpu_methods.settings(case, device="cpu", steps=7, runs=tmp_path)
        assert Path(config.teacher.checkpoint).parent.name == known[case][0]


def test_a_method_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "kd").write_text("no folder")
    assert gpu_methods.tried("kd", "cpu", steps=2, runs=tmp_path).startswith("FAILED")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dry_run(tmp_path: Path) -> None:
    images, labels = np.zeros((100, 32, 32, 3), np.uint8), np.arange(100) % 10
    images[::2, ::3] = 200
    parts = {"images": images, "labels": labels}
    names = np.array(list(compose(["data=cifar10"]).data.dataset.classes))  # NAYER reads them
    splits = {f"{split}_{k}": v for split in ("train", "test") for k, v in parts.items()}
    np.savez(tmp_path / "c.npz", classes=names, **splits)
    spec = InputSpec((3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    torch.manual_seed(0)
    module = resnet_cifar(in_channels=3, num_classes=10, depth=20)
    network = Classifier(module, spec, names.tolist())
    save_network(tmp_path / "t.safetensors", network, {})
    common = ["--dry-run", "--device", "cpu", "--limit", "900", "--out", str(tmp_path / "out")]
    common += ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "c.npz")]
    for part in gpu.PARTS:
        code = gpu.main([*common, "--part", part, "--teacher", str(tmp_path / "t.safetensors")])
        report = json.loads((tmp_path / "out" / f"{part}.json").read_text())
        assert code == 0, [e for e in report if e["status"] != "finished"]
    assert {p.name for p in (tmp_path / "out").glob("*.json")} >= {"dfq.json", "nayer.json"}
