"""Synthesis by a generator that is trained beside the student: DAFL, DFQ, MAD, KegNet and kin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.runtime import Runtime
from core.schedules import Factor, Schedule, constant
from data.spec import Batch
from generators.base import Made, Targets, Workload
from generators.networks import GeneratorNetwork, draw_latent
from generators.observer import Observer
from generators.watched import Watched


class TrainedGenerator:
    """A generator that lasts, and takes steps along the gradient of its objective.

    Only the objective distinguishes one method from another. The generator stays in training mode:
    its BatchNorm uses the batch's own statistics for the student's inputs too, as in the papers'
    code.

    Args:
        generator: maps noise (and classes) to inputs.
        observer: judges them.
        optimizer: called with the parameters of the generator and those that losses own, gives
            their optimizer.
        runtime: device, precision and noise.
        num_classes: classes are drawn uniformly from this many, if the generator, a loss or the
            targets need them.
        size: inputs of a step, on each rank.
        updates: steps of the optimizer at a time.
        schedule: factor on the initial learning rate, from the share of the run done, in [0, 1).
        clip: largest norm of the gradient of all that the optimizer trains.
        targets: gives soft targets for the classes drawn, if a loss needs them.

    Raises:
        ValueError: for counts below 1.
    """

    def __init__(
        self,
        generator: GeneratorNetwork,
        observer: Observer,
        optimizer: Callable[..., torch.optim.Optimizer],
        runtime: Runtime,
        num_classes: int,
        size: int,
        updates: int = 1,
        schedule: Factor | None = None,
        clip: float | None = None,
        targets: Targets | None = None,
    ) -> None:
        if min(size, updates) < 1:
            raise ValueError("size and updates must be at least 1")
        self.observe, self.runtime, self.targets = observer, runtime, targets
        self.size, self.updates, self.clip = size, updates, clip
        self.generator: GeneratorNetwork = runtime.prepare(generator).train()  # type: ignore[assignment]
        labelled = generator.conditional or any(observer.objective.ask("needs_label")) or targets
        self.num_classes = num_classes if labelled else None
        spare = runtime.world_size > 1 and _spare(self.generator, self.num_classes, runtime)
        self.parallel = runtime.parallel(runtime.compile(self.generator), spare)
        self.parameters = [*self.generator.parameters(), *observer.parameters]
        self.optimizer = optimizer(self.parameters)
        self.schedule = Schedule(self.optimizer, schedule or constant())
        self.answers = not observer.views  # the teacher saw the images themselves
        self.watched = Watched()
        self.steps = 0
        self.losses: dict[str, Tensor] = {}

    def update(
        self, progress: float, student_knows: bool = True, iterations: int | None = None
    ) -> Made:
        self.schedule.apply(progress)
        self.observe.objective.at(progress)
        for _ in range(self.updates):
            made = self._step(student_knows)
        return made

    def draw(self, size: int, noise: torch.Generator) -> Batch:
        z, label = draw_latent(self.generator, size, self.num_classes, noise)
        with torch.no_grad(), self.runtime.autocast():
            return Batch(self.generator(z, label), label)

    def watch(self, layers: Sequence[nn.Module]) -> None:
        self.watched.add(layers)

    def plan(self) -> Workload:
        return Workload(gradients=self.updates * self.size * self.observe.queries_per_image)

    def report(self) -> dict[str, Tensor | float]:
        return {**self.losses, "lr_generator": self.optimizer.param_groups[0]["lr"]}

    def counts(self) -> dict[str, int]:
        return {"images_synthesized": self.steps * self.size} | self.observe.counts()

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.observe.objective.state_dict(),
            "steps": self.steps,
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.observe.objective.load_state_dict(state["objective"])
        self.steps = state["steps"]
        self.losses = {k: v.to(self.runtime.device) for k, v in state["losses"].items()}

    def _step(self, student_knows: bool) -> Made:
        """One step of the optimizer, and the inputs that it was made on."""
        noise = self.runtime.noise("generator", self.steps)
        z, label = draw_latent(self.generator, self.size, self.num_classes, noise)
        with self.runtime.autocast():
            images = self.parallel(z, label)
        features = self.watched.take()
        seen, local = self.observe.look(images, self.steps)
        target = self.targets(label, noise) if self.targets and label is not None else None
        latent = self.generator.latent(z, label)
        losses = self.observe(seen, label, latent, target, local, student_knows)
        losses.total.backward()
        self.observe.average_gradients()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.observe.commit()
        self.steps += 1
        self.losses = losses.values
        answers = losses.teacher_logits if self.answers else None
        return Made(images.detach(), label, teacher_logits=answers, features=features)


def _spare(generator: GeneratorNetwork, num_classes: int | None, runtime: Runtime) -> bool:
    """Whether its images leave a parameter of the generator without gradient."""
    trial = copy.deepcopy(generator)
    trial(*draw_latent(trial, 2, num_classes, runtime.noise("trial", 0))).sum().backward()
    return any(p.requires_grad and p.grad is None for p in trial.parameters())
