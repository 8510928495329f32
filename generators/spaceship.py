"""Inputs from a generator's earlier features with exchanged channels (SpaceshipNet)."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from core.runtime import Runtime
from generators.networks import GeneratorNetwork, StandardGenerator


class FeatureExchange:
    """Channel-wise feature exchange (CFE of SpaceshipNet, Yu et al., CVPR 2023).

    Of all inputs that rounds have synthesized, the generator's features F_l [C, H, W] at its three
    resolutions l are pooled. A share of the student's batches is then made from them, rather than
    drawn from the bank. One l is chosen for the batch, and for each input two from its pool:

        x = G_{>l}(m ⊙ F_l + (1 − m) ⊙ F′_l),  m in {0, 1}^C with ⌊C/2⌋ ones, drawn for each input

    by the rest of the generator as it is now, with running statistics, as in the authors' code.
    There, the other batches are made anew in the same way, of features that were not exchanged;
    here they come from the bank. The pool is bounded here: the oldest features leave first.

    It combines with any variable that trains a lasting :class:`StandardGenerator`.

    Args:
        runtime: device and precision.
        capacity: inputs whose features are pooled, as float16 on the device.
        probability: of a student's batch to be made by exchange, in [0, 1].

    Attributes:
        images: how many were made, on this rank.

    Raises:
        ValueError: for a capacity below 1, and a probability out of range.
    """

    def __init__(self, runtime: Runtime, capacity: int = 2048, probability: float = 0.7) -> None:
        if capacity < 1 or not 0 <= probability <= 1:
            raise ValueError(
                "a feature exchange has a capacity of at least 1 and a probability in [0, 1], "
                f"not {capacity} and {probability}"
            )
        self.runtime, self.capacity, self.probability = runtime, capacity, probability
        self.pools: list[Tensor] = []
        self.labels = torch.zeros(capacity, dtype=torch.int64, device=runtime.device)
        self.latest: dict[int, Tensor] = {}
        self.best: list[Tensor] = []
        self.added = self.images = 0

    def start(self, generator: GeneratorNetwork | None) -> None:
        """Watch a generator, before it makes its first inputs.

        Raises:
            ValueError: if there is none, or one of another kind.
        """
        if not isinstance(generator, StandardGenerator):
            raise ValueError(
                "source.exchange exchanges features of a StandardGenerator: choose one "
                "(generator=standard), and a variable that trains it"
            )
        self.generator = generator
        for depth in generator.depths:
            generator.stages[depth].register_forward_hook(self._hook(depth))

    def keep(self, better: Tensor) -> None:
        """The latest features take the place of the round's best where ``better`` [] says so.

        Raises:
            ValueError: if the generator has made no inputs.
        """
        if len(self.latest) != len(self.generator.depths):
            raise ValueError(
                "source.exchange needs a variable whose own generator makes the inputs: use "
                "generators.variables.Generated or NoisyLayer"
            )
        latest = [feature.detach() for feature in self.latest.values()]
        self.latest = {}
        before = self.best or latest
        pairs = zip(latest, before, strict=True)
        self.best = [torch.where(better, new, old) for new, old in pairs]

    def add(self, label: Tensor) -> None:
        """Pool the features of a finished round, whose classes are ``label`` [B]."""
        kept = label[-self.capacity :]
        place = torch.arange(self.added, self.added + len(kept), device=label.device)
        place %= self.capacity
        self._allocate([feature.shape[1:] for feature in self.best])
        for pool, feature in zip(self.pools, self.best, strict=True):
            pool[place] = feature[-self.capacity :].to(pool.dtype)
        self.labels[place] = kept
        self.added += len(kept)
        self.best = []

    @torch.no_grad()
    def draw(self, size: int, noise: torch.Generator) -> Tensor | None:
        """New images [size, *shape], or None where the batch is one to come from the bank."""
        host = random.Random(noise.initial_seed())  # no waiting for the device
        if host.random() >= self.probability:
            return None
        assert self.added, "no round was pooled yet"
        at = host.randrange(len(self.pools))
        pool, filled = self.pools[at], min(self.added, self.capacity)
        one, other = torch.randint(filled, (2, size), generator=noise, device=pool.device)
        mixed = exchange_channels(pool[one].float(), pool[other].float(), noise)
        training = self.generator.training
        self.generator.eval()
        with self.runtime.autocast():
            first = self.generator.depths[at] + 1
            images = self.generator.finish(mixed, self.labels[one], first)
        self.generator.train(training)
        self.images += size
        return images

    def state_dict(self) -> dict[str, Any]:
        filled = min(self.added, self.capacity)
        return {
            "pools": [pool[:filled].clone() for pool in self.pools],
            "labels": self.labels[:filled].clone(),
            "added": self.added,
            "images": self.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.added, self.images = state["added"], state["images"]
        self._allocate([pool.shape[1:] for pool in state["pools"]])
        filled = len(state["labels"])
        for pool, saved in zip(self.pools, state["pools"], strict=True):
            pool[:filled].copy_(saved)
        self.labels[:filled].copy_(state["labels"])

    def _allocate(self, shapes: list[torch.Size]) -> None:
        if not self.pools:
            size, device = self.capacity, self.runtime.device
            kind = {"dtype": torch.float16, "device": device}
            self.pools = [torch.zeros((size, *shape), **kind) for shape in shapes]  # type: ignore[call-overload]

    def _hook(self, depth: int) -> Any:
        def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
            if layer.training:  # in eval mode it is an exchange that passes
                self.latest[depth] = output

        return hook


def exchange_channels(a: Tensor, b: Tensor, noise: torch.Generator) -> Tensor:
    """[B, C, ...] with a random half of a's channels, drawn for each input, and the others of b."""
    rank = torch.rand(a.shape[:2], generator=noise, device=a.device).argsort(dim=1)
    own = rank < a.shape[1] // 2
    return torch.where(own.view(*own.shape, *(1,) * (a.dim() - 2)), a, b)
