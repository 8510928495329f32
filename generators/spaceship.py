"""Inputs from a generator's earlier features with exchanged channels (SpaceshipNet)."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from core.runtime import Runtime
from data.spec import Batch
from generators.base import Made, Synthesizer
from generators.networks import StandardGenerator
from generators.streams import Place, Stream


class FeatureExchange(Stream):
    """Channel-wise feature exchange (CFE of SpaceshipNet, Yu et al., CVPR 2023).

    Of all inputs that updates have made, the generator's features F_l [C, H, W] at its three
    resolutions l are pooled. A share of the student's batches is then made from them, as a whole.
    One l is chosen for the batch, and for each input two from its pool:

        x = G_{>l}(m ⊙ F_l + (1 − m) ⊙ F′_l),  m in {0, 1}^C with ⌊C/2⌋ ones, drawn for each input

    by the rest of the generator as it is now, with running statistics, as in the authors' code.
    There, the other batches are made anew in the same way, of features that were not exchanged;
    here they come from the other streams. The pool is bounded here: the oldest features leave
    first.

    It combines with any synthesizer whose inputs a lasting :class:`StandardGenerator` makes.

    Args:
        runtime: device and precision.
        capacity: inputs whose features are pooled, as float16 on the device.
        probability: of a student's batch to be made by exchange, in [0, 1].

    Raises:
        ValueError: for a capacity below 1, and a probability out of range.
    """

    whole = synthesizes = classless = takes_first = True

    def __init__(self, runtime: Runtime, capacity: int = 2048, probability: float = 0.7) -> None:
        super().__init__()
        if capacity < 1 or not 0 <= probability <= 1:
            raise ValueError(
                "a feature exchange has a capacity of at least 1 and a probability in [0, 1], "
                f"not {capacity} and {probability}"
            )
        self.runtime, self.capacity, self.probability = runtime, capacity, probability
        self.pools: list[Tensor] = []
        self.labels = torch.zeros(capacity, dtype=torch.int64, device=runtime.device)
        self.added = 0

    def start(self, synthesizer: Synthesizer, place: Place) -> None:
        generator = synthesizer.generator
        if not isinstance(generator, StandardGenerator):
            raise ValueError(
                "it exchanges features of a StandardGenerator that lasts from update to update: "
                "use generator=standard with generators.trained.TrainedGenerator, or rounds of "
                "generators.variables.Generated with lifetime: 0"
            )
        self.generator = generator
        synthesizer.watch([generator.stages[depth] for depth in generator.depths])

    def due(self, turn: int, noise: torch.Generator) -> bool:
        return _host(noise).random() < self.probability

    def learn(self, made: Made) -> None:
        """Pool the features of new inputs, and their classes."""
        size = min(len(made.input), self.capacity)
        place = torch.arange(self.added, self.added + size, device=self.labels.device)
        place %= self.capacity
        self._allocate([feature.shape[1:] for feature in made.features])
        for pool, feature in zip(self.pools, made.features, strict=True):
            pool[place] = feature[-size:].to(pool.dtype)
        if made.label is not None:
            self.labels[place] = made.label[-size:]
        self.added += size

    @torch.no_grad()
    def draw(self, size: int, noise: torch.Generator) -> Batch:
        assert self.added, "nothing was pooled yet"
        host = _host(noise)
        host.random()  # which decided that the batch is due
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
        return Batch(images)

    def state_dict(self) -> dict[str, Any]:
        filled = min(self.added, self.capacity)
        return {
            "pools": [pool[:filled].clone() for pool in self.pools],
            "labels": self.labels[:filled].clone(),
            "added": self.added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.added = state["added"]
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


def _host(noise: torch.Generator) -> random.Random:
    """Numbers of a batch's noise that are drawn without waiting for the device."""
    return random.Random(noise.initial_seed())


def exchange_channels(a: Tensor, b: Tensor, noise: torch.Generator) -> Tensor:
    """[B, C, ...] with a random half of a's channels, drawn for each input, and the others of b."""
    rank = torch.rand(a.shape[:2], generator=noise, device=a.device).argsort(dim=1)
    own = rank < a.shape[1] // 2
    return torch.where(own.view(*own.shape, *(1,) * (a.dim() - 2)), a, b)
