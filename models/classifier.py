"""One entry point for every network: normalise, run, return logits and the features asked for."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.spec import InputSpec
from data.transforms import Transform
from models.copying import shared_copy
from models.logits import logits_of
from models.meter import Meter
from models.recording import BatchNorm, Moments, Record, Statistics, Tap, by_layer, full_precision


@dataclass
class Outputs:
    """The outputs of one forward pass; float32 (or float64) even under autocast.

    Args:
        logits: [B, C].
        features: the output of each tapped module, by tap name.
        statistics: one entry per BatchNorm layer that ran, in order of execution, if asked for.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    statistics: list[Statistics] = field(default_factory=list)


class Classifier(nn.Module):
    """A network with its input specification, its taps and nothing else.

    Hooks are registered here, once, before anything is compiled: a hook that comes after the
    first compiled call never runs. A network without taps carries no hook. To see the same
    weights through other taps, take a :meth:`frozen` view.

    Args:
        module: maps normalised inputs [B, *spec.shape] to logits [B, C], or to an output that
            contains them (``models.logits``). An attribute ``taps`` ({name: module path}) names its
            stages, and ``channels_last`` the paths among them whose maps are [B, H, W, C]; as
            features these are [B, C, H, W]. Where inputs are signals, features [B, C, L] are maps
            over a line, and become [B, C, 1, L], except at the paths in ``tokens``.
        spec: what ``module`` expects, after the transform.
        classes: class names in label order.
        taps: names or module paths whose outputs are returned as features.
        statistics: whether to return the statistics of every BatchNorm layer's input.
        meter: counts the inputs that it answers, itself or through a :meth:`frozen` view.
        transform: what it is shown, from the data's inputs; None shows them as they are.
        takes: the data's inputs, where there is a transform.

    Attributes:
        idle: BatchNorm layers that a view with statistics has, but does not run.

    Raises:
        ValueError: for a tap that does not exist, naming those that do.
    """

    meter: Meter | None

    def __init__(
        self,
        module: nn.Module,
        spec: InputSpec,
        classes: Iterable[str] = (),
        taps: Iterable[str] = (),
        statistics: bool = False,
        meter: Meter | None = None,
        transform: Transform | None = None,
        takes: InputSpec | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.transform = transform
        self.takes = takes or spec
        object.__setattr__(self, "meter", meter)  # shared by views: its count is saved elsewhere
        self.spec = spec
        self.classes = tuple(classes)
        self.taps = tuple(dict.fromkeys(taps))
        self.record = Record()
        for tap in self.taps:
            module, turned, line = self._resolve(tap)
            module.register_forward_hook(Tap(self.record, tap, turned, line))
        self.measured: frozenset[str] | None = None  # layers that run; a view knows them
        self.idle: tuple[str, ...] = ()
        if statistics:
            for name, layer in self.named_batchnorms().items():
                layer.register_forward_pre_hook(Moments(self.record, name))

    def batchnorms(self) -> list[BatchNorm]:
        """The layers with running statistics."""
        return list(self.named_batchnorms().values())

    def named_batchnorms(self) -> dict[str, BatchNorm]:
        """The same by their paths."""
        return {
            name: m
            for name, m in self.module.named_modules()
            if isinstance(m, BatchNorm) and m.running_mean is not None
        }

    def frozen(
        self, taps: Iterable[str] = (), statistics: bool = False, by_batch: bool = False
    ) -> Classifier:
        """A view in eval mode that shares this network's storage but takes no gradient.

        Optimizer steps here are seen there at once; nothing done through the view changes this
        network's gradients, mode or BatchNorm statistics, and its hooks never fire here.
        With ``by_batch`` its BatchNorm layers normalise by the batch's own statistics, as in
        train mode, and know no running ones to ask ``statistics`` for.

        BatchNorm layers that eval mode skips, as it does those of auxiliary heads, are ``idle``:
        they have no statistics.

        Raises:
            ValueError: for a tap that does not exist, or does not run exactly once.
        """
        assert not (statistics and by_batch), "a view by batch has no running statistics to compare"
        module = shared_copy(self.module)
        if by_batch:
            for m in module.modules():
                if isinstance(m, BatchNorm):
                    m.running_mean = m.running_var = m.num_batches_tracked = None
        view = self._with(module, taps, statistics, self.meter).eval()
        if view.taps or statistics:
            view.measured = view._running()
            known = view.named_batchnorms() if statistics else {}
            view.idle = tuple(name for name in known if name not in view.measured)
        return view

    def metered(self, meter: Meter) -> Classifier:
        """A frozen view whose answers, and those of its own views, the meter counts."""
        view = self.frozen()
        object.__setattr__(view, "meter", meter)
        return view

    def uncounted(self) -> AbstractContextManager[None]:
        """A context in which its meter, if it has one, counts nothing."""
        return self.meter.paused() if self.meter else nullcontext()

    def apart(self) -> Classifier:
        """A copy with buffers of its own, to be tried in any mode; weights are shared."""
        return self._with(shared_copy(self.module, own_buffers=True), self.taps)

    def _with(
        self,
        module: nn.Module,
        taps: Iterable[str],
        statistics: bool = False,
        meter: Meter | None = None,
    ) -> Classifier:
        """Another module in the place of this one's."""
        given = (self.spec, self.classes, taps, statistics, meter, self.transform, self.takes)
        return Classifier(module, *given)

    def _shown(self, x: Tensor) -> Tensor:
        """What the module gets to see of inputs."""
        return self.spec.normalize(x if self.transform is None else self.transform(x))

    def forward(self, x: Tensor) -> Outputs:
        """Map inputs [B, *shape] in the value range of ``takes`` to :class:`Outputs`.

        Raises:
            ValueError: if the network returns no logits, or if a tap or a BatchNorm layer does not
                run for these inputs as it did before.
        """
        if self.meter is not None:
            self.meter.add(len(x))
        self.record.clear()
        output = self.module(self._shown(x))
        logits = full_precision(logits_of(output, len(self.classes), self.name))
        features, statistics = self._recorded()
        if self.measured is not None and self.measured != statistics.keys():
            changed = ", ".join(sorted(self.measured ^ statistics.keys()))
            raise ValueError(
                f"{self.name} runs BatchNorm layers for some inputs and not for others "
                f"({changed}): use a method that does not read their statistics"
            )
        return Outputs(logits, features, list(statistics.values()))

    @property
    def name(self) -> str:
        """The architecture's name, for messages."""
        return type(self.module).__name__

    @torch.no_grad()
    def _running(self) -> frozenset[str]:
        """BatchNorm layers that one pass over noise runs, before anything is compiled."""
        device = next(self.module.parameters(), torch.empty(0)).device
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(cuda):  # some networks draw in eval mode too
            noise = self.takes.noise(2, device)
            parameter = next((p for p in self.module.parameters() if p.is_floating_point()), noise)
            self.module(self._shown(noise).to(parameter.dtype))
        return frozenset(self._recorded()[1])

    def _recorded(self) -> tuple[dict[str, Tensor], dict[str, Statistics]]:
        """Features and statistics of the latest pass, which are then let go."""
        features, statistics = self.record.features, by_layer(self.record.statistics)
        ran = [name for name, _ in features]
        found = dict(features)
        self.record.clear()
        if len(ran) != len(self.taps):
            tap = next(tap for tap in self.taps if ran.count(tap) != 1)
            mode = "training" if self.module.training else "eval"
            times = f"runs {ran.count(tap)} times" if tap in ran else "does not run"
            raise ValueError(
                f"the tap {tap!r} of {self.name} {times} in {mode} mode: "
                "name a module that runs once"
            )
        return found, statistics

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def _resolve(self, tap: str) -> tuple[nn.Module, bool, bool]:
        """The module, and whether its maps are [B, ..., C], or may be over a line."""
        named: dict[str, str] = getattr(self.module, "taps", {})
        modules = dict(self.module.named_modules())
        path = named.get(tap, tap)
        if path not in modules or not path:
            known = ", ".join([*named, *(name for name in modules if name)])
            raise ValueError(f"no tap {tap!r} in {self.name}; it has: {known}")
        turned = path in getattr(self.module, "channels_last", ())
        line = len(self.spec.kind.places) == 1 and path not in getattr(self.module, "tokens", ())
        return modules[path], turned, line
