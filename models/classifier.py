"""One entry point for every network: normalise, run, return logits and the features asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from data.spec import InputSpec

BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass
class Statistics:
    """Mean and biased variance [C] of a BatchNorm layer's input, beside its running ones."""

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


@dataclass
class Outputs:
    """What one forward pass gives; float32 (or float64) whatever the autocast.

    Args:
        logits: [B, C].
        features: the output of each tapped module, by tap name.
        statistics: one entry per BatchNorm layer in order of execution, if asked for.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    statistics: list[Statistics] = field(default_factory=list)


def full_precision(x: Tensor) -> Tensor:
    """float64 stays; anything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


class Classifier(nn.Module):
    """A network with its input specification, its taps and nothing else.

    Hooks are registered here, once, before anything is compiled: a hook that comes after the
    first compiled call never runs. A network without taps carries no hook. To see the same
    weights through other taps, take a :meth:`frozen` view.

    Args:
        module: maps normalised inputs [B, *spec.shape] to logits [B, C]. An attribute
            ``taps`` ({name: module path}) names its stages, and ``channels_last`` the paths
            among them whose maps are [B, H, W, C]; as features these are [B, C, H, W].
        spec: what ``module`` expects.
        classes: class names in label order.
        taps: names or module paths whose outputs are returned as features.
        statistics: whether to return the statistics of every BatchNorm layer's input.

    Raises:
        ValueError: for a tap that does not exist, naming those that do.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: InputSpec,
        classes: Iterable[str] = (),
        taps: Iterable[str] = (),
        statistics: bool = False,
    ) -> None:
        super().__init__()
        self.module = module
        self.spec = spec
        self.classes = tuple(classes)
        self.taps = tuple(dict.fromkeys(taps))
        self._features: dict[str, Tensor] = {}
        self._statistics: list[Statistics] = []
        for tap in self.taps:
            self._resolve(tap).register_forward_hook(self._feature_hook(tap))
        if statistics:
            for layer in self.batchnorms():
                layer.register_forward_pre_hook(self._statistics_hook())
        self.expected_statistics = len(self.batchnorms()) if statistics else 0

    def batchnorms(self) -> list[BatchNorm]:
        """The layers with running statistics."""
        return [
            m
            for m in self.module.modules()
            if isinstance(m, BatchNorm) and m.running_mean is not None
        ]

    def frozen(
        self, taps: Iterable[str] = (), statistics: bool = False, by_batch: bool = False
    ) -> Classifier:
        """A view in eval mode that shares this network's storage but takes no gradient.

        Optimizer steps here are seen there at once; nothing done through the view changes this
        network's gradients, mode or BatchNorm statistics, and its hooks never fire here.
        With ``by_batch`` its BatchNorm layers normalise by the batch's own statistics, as in
        train mode, and know no running ones to ask ``statistics`` for.
        """
        assert not (statistics and by_batch), "a view by batch has no running statistics to compare"
        memo: dict[int, Any] = {}
        for parameter in self.module.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for buffer in self.module.buffers():
            memo[id(buffer)] = buffer
        module = copy.deepcopy(self.module, memo)
        for m in module.modules():
            m._forward_hooks.clear()
            m._forward_pre_hooks.clear()
            m._compiled_call_impl = None
            if by_batch and isinstance(m, BatchNorm):
                m.running_mean = m.running_var = m.num_batches_tracked = None
        view = Classifier(module, self.spec, self.classes, taps, statistics)
        return view.eval()

    def forward(self, x: Tensor) -> Outputs:
        """Map inputs [B, *shape] in the specification's value range to :class:`Outputs`."""
        self._features.clear()
        self._statistics.clear()
        logits = self.module(self.spec.normalize(x))
        assert len(self._features) == len(self.taps), "a tapped module did not run"
        assert len(self._statistics) == self.expected_statistics, "a BatchNorm layer did not run"
        features, statistics = dict(self._features), list(self._statistics)
        self._features.clear()  # hold no activation longer than the caller does
        self._statistics.clear()
        return Outputs(full_precision(logits), features, statistics)

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def _resolve(self, tap: str) -> nn.Module:
        named: dict[str, str] = getattr(self.module, "taps", {})
        modules = dict(self.module.named_modules())
        path = named.get(tap, tap)
        if path not in modules or not path:
            known = ", ".join([*named, *(name for name in modules if name)])
            raise ValueError(f"no tap {tap!r} in {type(self.module).__name__}; it has: {known}")
        return modules[path]

    def _feature_hook(self, tap: str) -> Any:
        path = getattr(self.module, "taps", {}).get(tap, tap)
        turned = path in getattr(self.module, "channels_last", ())

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"the tap {tap!r} gives a {type(output).__name__}, not one tensor: "
                    "name a module inside of it"
                )
            self._features[tap] = full_precision(output.movedim(-1, 1) if turned else output)

        return hook

    def _statistics_hook(self) -> Any:
        def hook(layer: BatchNorm, args: tuple[Tensor]) -> None:
            x = full_precision(args[0])
            dims = [d for d in range(x.dim()) if d != 1]
            variance, mean = torch.var_mean(x, dims, correction=0)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            self._statistics.append(
                Statistics(mean, variance, layer.running_mean, layer.running_var)
            )

        return hook
