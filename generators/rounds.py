"""Synthesis in rounds: a batch of inputs is optimised for many iterations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.runtime import Runtime, Stopped
from core.schedules import Factor, Schedule, constant
from generators.base import Made, Targets, Workload
from generators.observer import Observer
from generators.variables import Variable
from generators.watched import Watched


class Rounds:
    """Each update is a round, which optimises a batch of inputs.

    A round draws classes in balance, begins its variable (pixels, a generator and latents, a copy
    of a generator) and takes ``iterations`` steps along the gradient of the objective. Of all its
    iterations' inputs, it keeps those with the lowest objective, as all authors' code does, without
    making the device wait. The variable decides what is optimised; DeepInversion, CMI, FastDFKD and
    NAYER differ in nothing else.

    A round may take minutes. Asked to stop, it raises :class:`core.runtime.Stopped` and leaves this
    object as it was before the round; the next run then repeats that round bit for bit.

    Args:
        variable: what is optimised.
        observer: judges the inputs.
        optimizer: called with a round's parameter groups, gives its optimizer.
        runtime: device, precision and noise.
        num_classes: how many classes are aimed at.
        size: inputs of a round.
        iterations: optimizer steps in a round.
        schedule: factor on the initial learning rates, from the share of a round done, in [0, 1).
        targets: gives soft targets for the classes drawn, if a loss needs them.

    Raises:
        ValueError: for counts below 1.
    """

    def __init__(
        self,
        variable: Variable,
        observer: Observer,
        optimizer: Callable[..., torch.optim.Optimizer],
        runtime: Runtime,
        num_classes: int,
        size: int = 256,
        iterations: int = 200,
        schedule: Factor | None = None,
        targets: Targets | None = None,
    ) -> None:
        if min(size, iterations) < 1:
            raise ValueError("size and iterations must be at least 1")
        self.observe, self.runtime, self.targets = observer, runtime, targets
        self.variable: Variable = runtime.prepare(variable)  # type: ignore[assignment]
        self.generator = variable.lasting
        self.optimizer, self.schedule = optimizer, schedule or constant()
        self.num_classes, self.size, self.iterations = num_classes, size, iterations
        self.answers = False
        self.watched = Watched()
        self.rounds = 0
        self.losses: dict[str, Tensor] = {}

    def update(
        self, progress: float, student_knows: bool = True, iterations: int | None = None
    ) -> Made:
        before, random = copy.deepcopy(self._lasting()), self.runtime.random_state()
        self.observe.objective.at(progress)
        try:
            made, losses = self._synthesize(iterations or self.iterations, student_knows)
        except Stopped:
            self._restore(before)
            self.runtime.restore_random_state(random)
            raise
        self.variable.end()
        self.observe.commit()
        self.rounds += 1
        self.losses = losses
        return made

    def watch(self, layers: Sequence[nn.Module]) -> None:
        self.watched.add(layers)

    def plan(self) -> Workload:
        images = self.iterations * self.size
        return Workload(gradients=images * self.observe.queries_per_image, updates=self.iterations)

    def report(self) -> dict[str, Tensor | float]:
        """Losses at the end of the latest round, where its learning rate has come to its end."""
        return dict(self.losses)

    def counts(self) -> dict[str, int]:
        return {"images_synthesized": self.rounds * self.size} | self.observe.counts()

    def state_dict(self) -> dict[str, Any]:
        return {**self._lasting(), "rounds": self.rounds, "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restore(state)
        self.rounds = state["rounds"]
        self.losses = {k: v.to(self.runtime.device) for k, v in state["losses"].items()}

    def _lasting(self) -> dict[str, Any]:
        """The state that passes from round to round."""
        objective = self.observe.objective
        return {"variable": self.variable.state_dict(), "objective": objective.state_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.variable.load_state_dict(state["variable"])
        self.observe.objective.load_state_dict(state["objective"])

    def _synthesize(self, iterations: int, student_knows: bool) -> tuple[Made, dict[str, Tensor]]:
        """The round's best images in the value range with their classes, and the last losses."""
        noise = self.runtime.noise("round", self.rounds)
        label = draw_classes(self.size, self.num_classes, noise)
        target = self.targets(label, noise) if self.targets else None
        groups = self.variable.begin(label, self.rounds, noise)
        if self.observe.parameters:
            groups.append({"params": self.observe.parameters})
        optimizer = self.optimizer(groups)
        schedule = Schedule(optimizer, self.schedule)
        best: list[Tensor] = []
        least = torch.full((), torch.inf, device=self.runtime.device)
        for i in range(iterations):
            if self.runtime.asked_to_stop(i):
                raise Stopped
            schedule.apply(i / iterations)
            with self.runtime.autocast():
                images, latent = self.variable()
            seen, local = self.observe.look(images, self.rounds * self.iterations + i)
            losses = self.observe(seen, label, latent, target, local, student_knows)
            losses.total.backward()
            self.variable.after_backward()
            self.observe.average_gradients()
            optimizer.step()
            optimizer.zero_grad()
            self.variable.after_step()
            total = losses.total.detach()
            better = total < least
            now = [images.detach(), *self.watched.take()]
            best = [torch.where(better, a, b) for a, b in zip(now, best or now, strict=True)]
            self.observe.keep(better)
            least = torch.minimum(total, least)
        return Made(best[0], label, features=best[1:]), losses.values


def draw_classes(size: int, num_classes: int, noise: torch.Generator) -> Tensor:
    """[size] classes in random order, each once in every ``num_classes`` consecutive ones."""
    blocks = -(-size // num_classes)
    order = torch.rand(blocks, num_classes, generator=noise, device=noise.device).argsort(dim=1)
    return order.flatten()[:size]
