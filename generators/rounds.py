"""Synthesis in rounds: a batch of inputs is optimised and then added to a bank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from core.objective import Losses, Objective
from core.runtime import Runtime, Stopped
from core.schedules import Factor, Schedule, constant
from data.augment import Augmentation, through
from data.spec import Batch
from generators.bank import Bank, Policy
from generators.base import Targets, Workload
from generators.observer import Observer
from generators.spaceship import FeatureExchange
from generators.variables import Variable
from models.classifier import Classifier

PRACTICE = 2**30  # the number of a round that no run reaches


class RoundSource:
    """Every ``student_steps`` batches, a round adds freshly synthesized inputs to a bank.

    A round draws classes in balance, begins its variable (pixels, a generator and latents, a copy
    of a generator) and takes ``iterations`` steps along the gradient of the objective. Of all its
    iterations' inputs, it keeps those with the lowest objective, as all authors' code does, without
    making the device wait. The variable decides what is optimised; DeepInversion, CMI, FastDFKD and
    NAYER differ in nothing else.

    A round may take minutes. Asked to stop, it raises :class:`core.runtime.Stopped` and leaves this
    object as it was before the round; the next run then repeats that round bit for bit.

    Args:
        variable: what is optimised.
        teacher: what the inputs are synthesized from.
        student: read where a loss asks for it (ADI), and never changed.
        objective: called with a :class:`~generators.base.Synthesis`.
        optimizer: called with a round's parameter groups, gives its optimizer.
        runtime: device, precision and noise.
        num_classes: how many classes are aimed at.
        batch_size: of the student's batches, on each rank.
        steps: of the student, over which the losses' weights follow their schedules.
        synthesis_batch_size: inputs a round adds.
        iterations: optimizer steps in a round.
        student_steps: batches between two rounds.
        warmup_rounds: rounds before the first batch; the student knows nothing yet, and losses
            that read it are left out.
        capacity: of the bank.
        policy: of the bank; see :class:`~generators.bank.Bank`.
        targets: gives soft targets for the classes drawn, if a loss needs them.
        schedule: factor on the initial learning rates, from the share of a round done, in [0, 1).
        views: augmentations of the inputs, in order, before teacher and student see them.
        local_views: the same for the second view, where a loss compares two.
        augment: likewise of the batches that the student gets.
        exchange: makes some of the student's batches itself, of what the variable's generator has
            made in earlier rounds, instead of drawing them from the bank.

    Raises:
        ValueError: for counts below 1, a teacher that lacks what a loss reads, and an exchange
            of what a generator makes that does not last.
    """

    period = 1  # but for the rounds, which ``plan`` counts

    def __init__(
        self,
        variable: Variable,
        teacher: Classifier,
        student: Classifier,
        objective: Objective,
        optimizer: Callable[..., torch.optim.Optimizer],
        runtime: Runtime,
        num_classes: int,
        batch_size: int,
        steps: int,
        synthesis_batch_size: int = 256,
        iterations: int = 200,
        student_steps: int = 400,
        warmup_rounds: int = 0,
        capacity: int = 50_000,
        policy: Policy = "fifo",
        targets: Targets | None = None,
        schedule: Factor | None = None,
        views: Sequence[Augmentation] = (),
        local_views: Sequence[Augmentation] = (),
        augment: Sequence[Augmentation] = (),
        exchange: FeatureExchange | None = None,
    ) -> None:
        _check((batch_size, synthesis_batch_size, iterations, student_steps), warmup_rounds)
        self.observe = Observer(teacher, student, objective, runtime, views, local_views)
        self.variable: Variable = runtime.prepare(variable)  # type: ignore[assignment]
        self.bank = Bank(teacher.takes, capacity, runtime.device, policy)
        self.optimizer, self.schedule = optimizer, schedule or constant()
        self.runtime, self.num_classes, self.targets = runtime, num_classes, targets
        self.batch_size, self.synthesis_batch_size = batch_size, synthesis_batch_size
        self.steps, self.iterations, self.student_steps = steps, iterations, student_steps
        self.warmup_rounds, self.augment, self.exchange = warmup_rounds, tuple(augment), exchange
        if exchange:
            exchange.start(getattr(variable, "generator", None))
            if getattr(variable, "lifetime", 0):
                raise ValueError(
                    "source.exchange decodes features of earlier rounds, by a generator that has "
                    "to last: use source.variable.lifetime=0"
                )
        self.batches = self.rounds = 0
        self.losses: dict[str, Tensor] = {}

    def next(self) -> Batch:
        while self.rounds <= self.warmup_rounds + self.batches // self.student_steps:
            self._round()
        noise = self.runtime.noise("batch", self.batches)
        made = self.exchange.draw(self.batch_size, noise) if self.exchange else None
        drawn = self.bank.sample(self.batch_size, noise) if made is None else (made, None, None)
        images, label, index = drawn
        images = through(self.augment, images, noise)
        self.batches += 1
        return Batch(images, label, index)

    def learned(self, batch: Batch, losses: Losses) -> None:
        """Do nothing: the batches do not depend on it."""

    def report(self) -> dict[str, Tensor | float]:
        """Losses at the end of the latest round, where its learning rate has come to its end."""
        return dict(self.losses)

    def counts(self) -> dict[str, int]:
        """Each image counts once."""
        images = self.rounds * self.synthesis_batch_size
        return {
            "images_synthesized": images + (self.exchange.images if self.exchange else 0),
            "real_training_inputs_read": 0,
        } | self.observe.counts()

    def plan(self, steps: int) -> Workload:
        """The work of the rounds; see :class:`~generators.base.Workload`."""
        rounds = self.warmup_rounds - (-steps // self.student_steps)
        updates = rounds * self.iterations
        images = updates * self.synthesis_batch_size
        return Workload(gradients=images * self.observe.queries_per_image, updates=updates)

    def practice(self, updates: int) -> int:
        """See :class:`~generators.base.Practising`."""
        self.rounds = PRACTICE
        self._round(count := min(updates, self.iterations))
        return count

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._lasting(),
            "bank": self.bank.state_dict(),
            "exchange": self.exchange.state_dict() if self.exchange else None,
            "batches": self.batches,
            "rounds": self.rounds,
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restore(state)
        self.bank.load_state_dict(state["bank"])
        if self.exchange:
            self.exchange.load_state_dict(state["exchange"])
        self.batches = state["batches"]
        self.rounds = state["rounds"]
        self.losses = {k: v.to(self.runtime.device) for k, v in state["losses"].items()}

    def _lasting(self) -> dict[str, Any]:
        """The state that passes from round to round."""
        objective = self.observe.objective
        return {"variable": self.variable.state_dict(), "objective": objective.state_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.variable.load_state_dict(state["variable"])
        self.observe.objective.load_state_dict(state["objective"])

    def _round(self, iterations: int | None = None) -> None:
        before = copy.deepcopy(self._lasting())
        noise = self.runtime.noise("round", self.rounds)
        self.observe.objective.at(self.batches / self.steps)
        try:
            images, label, losses = self._synthesize(noise, iterations or self.iterations)
        except Stopped:
            self._restore(before)
            raise
        self.variable.end()
        self.observe.commit()
        self.bank.add(images, label, self.rounds, noise)
        if self.exchange:
            self.exchange.add(label)
        self.rounds += 1
        self.losses = losses

    def _synthesize(
        self, noise: torch.Generator, iterations: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The round's best images in the value range, their classes, and the last losses."""
        label = draw_classes(self.synthesis_batch_size, self.num_classes, noise)
        target = self.targets(label, noise) if self.targets else None
        groups = self.variable.begin(label, self.rounds, noise)
        if self.observe.parameters:
            groups.append({"params": self.observe.parameters})
        optimizer = self.optimizer(groups)
        schedule = Schedule(optimizer, self.schedule)
        best: Tensor | None = None
        least = torch.full((), torch.inf, device=self.runtime.device)
        for i in range(iterations):
            if self.runtime.asked_to_stop(i):
                raise Stopped
            schedule.apply(i / iterations)
            with self.runtime.autocast():
                images, latent = self.variable()
            losses = self._look(images, label, latent, target, i)
            optimizer.zero_grad()
            losses.total.backward()
            self.variable.after_backward()
            self.observe.average_gradients()
            optimizer.step()
            self.variable.after_step()
            total, images = losses.total.detach(), images.detach()
            better = total < least
            best = images if best is None else torch.where(better, images, best)
            self.observe.keep(better)
            if self.exchange:
                self.exchange.keep(better)
            least = torch.minimum(total, least)
        assert best is not None
        return best, label, losses.values

    def _look(
        self,
        images: Tensor,
        label: Tensor,
        latent: Tensor | None,
        target: Tensor | None,
        iteration: int,
    ) -> Losses:
        """The losses of the images, seen through this iteration's views."""
        seen, local = self.observe.look(images, self.rounds * self.iterations + iteration)
        knows = self.rounds >= self.warmup_rounds
        return self.observe(seen, label, latent, target, local, student_knows=knows)


def _check(counts: tuple[int, ...], warmup_rounds: int) -> None:
    """Raise a ValueError for settings of :class:`RoundSource` that do not fit together."""
    if min(counts) < 1:
        raise ValueError("batch sizes, iterations and student_steps must be at least 1")
    if warmup_rounds < 0:
        raise ValueError(f"warmup_rounds must be at least 0, not {warmup_rounds}")


def draw_classes(size: int, num_classes: int, noise: torch.Generator) -> Tensor:
    """[size] classes in random order, each once in every ``num_classes`` consecutive ones."""
    blocks = -(-size // num_classes)
    order = torch.rand(blocks, num_classes, generator=noise, device=noise.device).argsort(dim=1)
    return order.flatten()[:size]
