"""Synthesis by a generator that is trained beside the student: DAFL, ZSKT, DFAD, DFQ and kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data.spec import Batch
from engine.objective import Objective
from engine.runtime import Runtime
from engine.schedules import Factor, Schedule, constant
from generators.networks import GeneratorNetwork
from generators.observer import Observer
from models.classifier import Classifier


class GenerativeSource:
    """Every ``student_steps`` batches, the generator makes ``generator_steps`` updates.

    What it minimises is the objective; nothing else tells one method from another. Batches are
    fresh images of the generator, which stays in training mode: its BatchNorm uses the batch's
    own statistics for the student too, as in the papers' code.

    Args:
        generator: maps noise (and classes) to inputs.
        teacher: what the inputs are synthesized from.
        student: read where a term asks for it, and never changed.
        objective: of the generator; called with a :class:`~generators.base.Synthesis`.
        optimizer: called with the generator's parameters, gives their optimizer.
        runtime: device, precision and noise.
        num_classes: classes are drawn uniformly from so many, if the generator or a term
            wants them.
        steps: batches in the whole run.
        batch_size: of the student's batches, on each rank.
        synthesis_batch_size: of the generator's updates; ``batch_size`` if None.
        generator_steps: updates at a time.
        student_steps: batches between two updates.
        schedule: factor on the initial learning rate, from the share of the run done, in [0, 1).
        clip: largest norm of the generator's gradient.
        reuse: hand the images of the latest update to the student instead of drawing new ones,
            as in DAFL's joint training.

    Raises:
        ValueError: for ``reuse`` where not every batch has an update of its size, counts
            below 1, and a teacher that lacks what a term reads.
    """

    def __init__(
        self,
        generator: GeneratorNetwork,
        teacher: Classifier,
        student: Classifier,
        objective: Objective,
        optimizer: Callable[..., torch.optim.Optimizer],
        runtime: Runtime,
        num_classes: int,
        steps: int,
        batch_size: int,
        synthesis_batch_size: int | None = None,
        generator_steps: int = 1,
        student_steps: int = 5,
        schedule: Factor | None = None,
        clip: float | None = None,
        reuse: bool = False,
    ) -> None:
        if min(batch_size, synthesis_batch_size or 1, generator_steps, student_steps) < 1:
            raise ValueError("batch sizes, generator_steps and student_steps must be at least 1")
        if reuse and (student_steps != 1 or synthesis_batch_size not in (None, batch_size)):
            raise ValueError(
                "reuse=true hands the images of each update to the student: it needs "
                "student_steps=1 and synthesis_batch_size equal to batch_size"
            )
        self.observe = Observer(teacher, student, objective, runtime)
        self.generator = runtime.prepare(generator).train()
        runtime.compile(self.generator)
        self.parallel = runtime.parallel(self.generator)
        self.optimizer = optimizer(self.generator.parameters())
        self.schedule = Schedule(self.optimizer, schedule or constant())
        self.latent_size = generator.latent_size
        self.labelled = generator.conditional or any(objective.ask("needs_label"))
        self.runtime, self.num_classes, self.steps = runtime, num_classes, steps
        self.batch_size, self.synthesis_batch_size = batch_size, synthesis_batch_size or batch_size
        self.generator_steps, self.student_steps = generator_steps, student_steps
        self.clip, self.reuse = clip, reuse
        self.batches = self.updates = self.images_synthesized = 0
        self.terms: dict[str, Tensor] = {}

    def next(self) -> Batch:
        images, label = None, None
        if self.batches % self.student_steps == 0:
            for _ in range(self.generator_steps):
                images, label = self._update()
        if images is None or not self.reuse:
            with torch.no_grad():
                images, label = self._generate(
                    self.generator, self.batch_size, self.runtime.noise("batch", self.batches)
                )
        self.batches += 1
        return Batch(images, images, label)

    def report(self) -> dict[str, Tensor | float]:
        return {**self.terms, "lr_generator": self.optimizer.param_groups[0]["lr"]}

    def counts(self) -> dict[str, int]:
        """An image counts once, whoever saw it; a query of the teacher with every update."""
        return {
            "images_synthesized": self.images_synthesized,
            "teacher_queries": self.updates * self.synthesis_batch_size,
            "real_training_inputs_read": 0,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.observe.objective.state_dict(),
            "batches": self.batches,
            "updates": self.updates,
            "images_synthesized": self.images_synthesized,
            "terms": self.terms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.observe.objective.load_state_dict(state["objective"])
        self.batches = state["batches"]
        self.updates = state["updates"]
        self.images_synthesized = state["images_synthesized"]
        self.terms = {k: v.to(self.runtime.device) for k, v in state["terms"].items()}

    def _update(self) -> tuple[Tensor, Tensor | None]:
        """One step of the generator; gives the images that it was made on, detached."""
        self.schedule.apply(self.batches / self.steps)
        noise = self.runtime.noise("generator", self.updates)
        images, label = self._generate(self.parallel, self.synthesis_batch_size, noise)
        losses = self.observe(images, label)
        losses.total.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.generator.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        self.terms = losses.terms
        return images.detach(), label

    def _generate(
        self, generator: nn.Module, size: int, noise: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        device = self.runtime.device
        z = torch.randn(size, self.latent_size, generator=noise, device=device)
        label = None
        if self.labelled:
            label = torch.randint(self.num_classes, (size,), generator=noise, device=device)
        with self.runtime.autocast():
            images = generator(z, label)
        self.images_synthesized += size
        return images, label
