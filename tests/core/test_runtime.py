"""What a run asks of the device, as far as it can be told without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.runtime import Runtime
from engine.config import compose

SETTINGS = [(torch.backends.cudnn, name) for name in ("deterministic", "benchmark", "allow_tf32")]
SETTINGS.append((torch.backends.cuda.matmul, "allow_tf32"))


@pytest.fixture(autouse=True)
def settings_put_back() -> Iterator[None]:
    before = [getattr(backend, name) for backend, name in SETTINGS]
    yield
    for (backend, name), value in zip(SETTINGS, before, strict=True):
        setattr(backend, name, value)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_settings_reach_cuda(
    deterministic: bool, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    settings = [f"deterministic={deterministic}", f"tf32={tf32}", "precision=bf16", "seed=3"]
    runtime = Runtime.of(compose(["device=cuda", *settings]))
    assert (runtime.device.type, runtime.precision, runtime.seed) == ("cuda", "bf16", 3)
    found = [getattr(backend, name) for backend, name in SETTINGS]
    assert found == [deterministic, not deterministic, tf32, tf32]


def test_by_default_a_run_repeats_itself_and_fp32_is_what_it_says() -> None:
    config = compose([])
    assert (config.deterministic, config.tf32, config.precision) == (True, False, "fp32")
