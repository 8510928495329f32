"""Small networks made by hand, and sources built on them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import InputSpec
from generators.bank import Bank
from generators.base import SynthesisLoss
from generators.losses import Activation, Adversarial, BatchNormStatistics, OneHot
from generators.mixture import Mixture
from generators.networks import StandardGenerator
from generators.observer import Observer
from generators.rounds import Rounds
from generators.streams import Fresh, Stream
from generators.trained import TrainedGenerator
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


OBSERVER = ("teacher", "student", "objective", "views", "local_views", "student_by_batch")
MIXTURE = ("pairs", "steps", "batch_size", "student_steps", "augment", "warmup", "ask_teacher")


def generative(
    runtime: Runtime | None = None,
    streams: Mapping[str, Stream] | None = None,
    reuse: bool = False,
    **kwargs: Any,
) -> Mixture:
    """Fresh inputs of a generator, and the streams beside them; any argument can be replaced."""
    conditional = kwargs.pop("conditional", False)
    torch.manual_seed(2)
    network = StandardGenerator(SPEC, CLASSES, latent_size=5, channels=8, conditional=conditional)
    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    settings = {"generator": network, "optimizer": adam, "size": 8, **kwargs}
    streams = {"fresh": Fresh(reuse=reuse), **(streams or {})}
    return _mixture(TrainedGenerator, streams, runtime or Runtime(device="cpu"), settings)


def inversion(
    runtime: Runtime | None = None,
    streams: Mapping[str, Stream] | None = None,
    capacity: int = 20,
    **kwargs: Any,
) -> Mixture:
    """A bank of what rounds make, and the streams beside it; any argument can be replaced."""
    runtime = runtime or Runtime(device="cpu")
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    settings = {"variable": Pixels(SPEC), "optimizer": adam, "size": 8, "iterations": 5}
    settings |= {"views": [Jitter(1)], **kwargs}
    spec = settings["teacher"].takes if "teacher" in settings else SPEC
    streams = {"bank": Bank(spec, runtime, CLASSES, capacity), **(streams or {})}
    return _mixture(Rounds, streams, runtime, settings)


def _mixture(
    kind: Any, streams: Mapping[str, Stream], runtime: Runtime, settings: dict[str, Any]
) -> Mixture:
    own = {"teacher": teacher(), "student": student(), "objective": objective()}
    own |= {"steps": 20, "batch_size": 6, "student_steps": 2, **settings}
    seen = {key: own.pop(key) for key in OBSERVER if key in own}
    mixed = {key: own.pop(key) for key in MIXTURE if key in own}
    observer = Observer(runtime=runtime, **seen)
    synthesizer = kind(observer=observer, runtime=runtime, num_classes=CLASSES, **own)
    return Mixture(synthesizer, streams, runtime, **mixed)


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict().items()
    return {name: value.clone() for name, value in state if isinstance(value, Tensor)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
