"""Small networks made by hand, and sources built on them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import InputSpec
from generators.base import SynthesisLoss
from generators.generative import GenerativeSource
from generators.losses import Activation, Adversarial, BatchNormStatistics, OneHot
from generators.networks import StandardGenerator
from generators.rounds import RoundSource
from generators.variables import Pixels
from generators.views import Jitter
from models.classifier import Classifier

SPEC = InputSpec((1, 8, 8), (0.0, 1.0), (0.3,), (0.4,))
CLASSES = 4


class Net(nn.Module):
    taps = {"pooled": "pool"}  # noqa: RUF012

    def __init__(self, width: int = 6, norm: bool = True, channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.head(self.pool(x))


def classifier(seed: int = 0, **kwargs: Any) -> Classifier:
    torch.manual_seed(seed)
    net = Classifier(Net(**kwargs), SPEC)
    nn.init.normal_(net.module.head.weight, std=2.0)  # so that classes differ
    for layer in net.batchnorms():
        nn.init.normal_(layer.running_mean, std=0.3)
    return net


def teacher(**kwargs: Any) -> Classifier:
    return classifier(seed=0, **kwargs).eval().requires_grad_(False)


def student(**kwargs: Any) -> Classifier:
    return classifier(seed=1, width=4, **kwargs).train()


def objective(**losses: SynthesisLoss) -> Objective:
    """The named losses at weight 1; all that a teacher with BatchNorm allows if none is named."""
    losses = losses or {
        "one_hot": OneHot(),
        "activation": Activation(),
        "adversarial": Adversarial(),
        "statistics": BatchNormStatistics(),
    }
    return Objective({name: Weighted(loss, 1.0) for name, loss in losses.items()})


def generative(runtime: Runtime | None = None, **kwargs: Any) -> GenerativeSource:
    """A source on fresh networks; any argument can be replaced."""
    conditional = kwargs.pop("conditional", False)
    torch.manual_seed(2)
    defaults = {
        "generator": StandardGenerator(
            SPEC, CLASSES, latent_size=5, channels=8, conditional=conditional
        ),
        "teacher": teacher(),
        "student": student(),
        "objective": objective(),
        "optimizer": functools.partial(torch.optim.Adam, lr=1e-2),
        "runtime": runtime or Runtime(device="cpu"),
        "num_classes": CLASSES,
        "steps": 20,
        "batch_size": 6,
        "synthesis_batch_size": 8,
        "student_steps": 2,
    }
    return GenerativeSource(**{**defaults, **kwargs})


def inversion(runtime: Runtime | None = None, **kwargs: Any) -> RoundSource:
    defaults = {
        "variable": Pixels(SPEC),
        "teacher": teacher(),
        "student": student(),
        "objective": objective(),
        "optimizer": functools.partial(torch.optim.Adam, lr=0.05),
        "runtime": runtime or Runtime(device="cpu"),
        "num_classes": CLASSES,
        "steps": 20,
        "batch_size": 6,
        "synthesis_batch_size": 8,
        "iterations": 5,
        "student_steps": 2,
        "capacity": 20,
        "views": [Jitter(1)],
    }
    return RoundSource(**{**defaults, **kwargs})


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict().items()
    return {name: value.clone() for name, value in state if isinstance(value, Tensor)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
