"""The time of a cycle compared with a plain loop's, in pairs, in one process.

    python benchmarks/plain_step.py [--repeat 10] [--json FILE] [precision=bf16]

The cycle is that of benchmarks/step_time.py: DAFL's generator step and five student steps,
WRN-40-2 -> WRN-16-1, 32x32, batch 64. The plain loop does the same in ordinary PyTorch: frozen
teacher, channels-last, fused optimizers, upsampling before each convolution, and the same networks
and loss functions, without Reverie's loop, sources, loss classes, views or checks. The two
alternate, so that a slow machine slows both; a ratio below 1 means that Reverie is faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step_time import CLASSES, SPEC, WARM_UP, cycle, extent, loop, main, now
from core.runtime import Runtime
from engine.config import compose, plain
from engine.networks import build_network

LATENT = 100


def measure_plain(overrides: list[str], repeat: int) -> dict[str, Any]:
    """Seconds of a cycle of each loop, and the ratio of Reverie's to the plain one in each pair."""
    config = compose(overrides)
    runtime = Runtime.of(config)
    training = loop(plain(config), runtime)
    steps = config.source.student_steps
    theirs = plain_loop(runtime, config.batch_size, steps)
    pairs = []
    for i in range(WARM_UP + repeat):
        loops: list[Callable[[], object]] = [lambda: cycle(training, steps), theirs]
        seconds = {k: timed(loops[k], runtime) for k in ((0, 1) if i % 2 else (1, 0))}
        pairs.append((seconds[0], seconds[1]))
    pairs = pairs[WARM_UP:]
    return {
        "cycle_seconds": extent([ours for ours, _ in pairs]),
        "plain_seconds": extent([other for _, other in pairs]),
        "ratio": extent([ours / other for ours, other in pairs]),
        "device": runtime.device_name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "overrides": " ".join(overrides),
    }


def timed(loop: Callable[[], object], runtime: Runtime) -> float:
    began = now(runtime)
    loop()
    return now(runtime) - began


def plain_loop(runtime: Runtime, batch: int, steps: int) -> Callable[[], None]:
    """One generator step and ``steps`` student steps with DAFL's losses, as a function."""
    teacher, student = network(runtime, depth=40, width=2), network(runtime, depth=16, width=1)
    teacher.eval().requires_grad_(False)
    seen: list[Tensor] = []
    head = [m for m in teacher.modules() if isinstance(m, nn.Linear)][-1]
    head.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    generator = runtime.prepare(plain_generator())
    g = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.999), fused=True)
    s = torch.optim.Adam(student.parameters(), 2e-3, fused=True)
    like: Any = {"device": runtime.device}
    mean, std = (torch.tensor(v, **like).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))

    def images() -> Tensor:
        return (generator(torch.randn(batch, LATENT, **like)).sigmoid() - mean) / std

    def run() -> None:
        with runtime.autocast():
            logits = teacher(images()).float()
        dafl(logits, seen[-1].float()).backward()
        g.step()
        g.zero_grad()
        for _ in range(steps):
            with torch.no_grad(), runtime.autocast():
                x = images()
                t = teacher(x).float()
            with runtime.autocast():
                y = student(x).float()
            kd(y, t).backward()
            s.step()
            s.zero_grad()
        seen.clear()

    return run


def network(runtime: Runtime, depth: int, width: int) -> nn.Module:
    settings = {"_target_": "models.wrn.WideResNet", "depth": depth, "width": width}
    return runtime.prepare(build_network(settings, SPEC.shape, CLASSES))


def dafl(logits: Tensor, features: Tensor) -> Tensor:
    """One-hot, activation and information-entropy losses (Chen et al., ICCV 2019)."""
    share = logits.softmax(1).mean(0)
    onehot = F.cross_entropy(logits, logits.argmax(1))
    return onehot - 0.01 * features.abs().mean() + 5 * (share * share.log()).sum()


def kd(student: Tensor, teacher: Tensor, temperature: float = 20.0) -> Tensor:
    p, q = ((x / temperature).log_softmax(1) for x in (teacher, student))
    return temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")


def plain_generator() -> nn.Sequential:
    """The DCGAN-style generator of nearly all published code."""
    return nn.Sequential(
        nn.Linear(LATENT, 128 * 8 * 8),
        nn.Unflatten(1, (128, 8, 8)),
        nn.BatchNorm2d(128),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.BatchNorm2d(128),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(128, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 3, 3, padding=1),
        nn.BatchNorm2d(3, affine=False),
    )


if __name__ == "__main__":
    main(str(__doc__), measure_plain)
