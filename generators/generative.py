"""Synthesis by a generator that is trained beside the student: DAFL, DFQ, MAD, KegNet and kin."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.objective import Losses, Objective
from core.runtime import Runtime
from core.schedules import Factor, Schedule, constant
from data.augment import Augmentation, through
from data.spec import Batch
from generators.base import Targets, Workload
from generators.experience import Experience
from generators.networks import GeneratorNetwork, draw_latent
from generators.observer import Observer
from generators.replay import Replay
from models.classifier import Classifier


class GenerativeSource:
    """Every ``student_steps`` batches, the generator makes ``generator_steps`` updates.

    It minimises the objective, and only that distinguishes one method from another. Batches are
    fresh images of the generator, which stays in training mode: its BatchNorm uses the batch's own
    statistics for the student too, as in the papers' code. With a replay, some of each batch are
    earlier images, behind the fresh ones, which keeps the student from forgetting them. With an
    experience, whole batches are earlier images, with the teacher's answers to them.

    Args:
        generator: maps noise (and classes) to inputs.
        teacher: what the inputs are synthesized from.
        student: read where a loss asks for it, and never changed.
        objective: of the generator; called with a :class:`~generators.base.Synthesis`.
        optimizer: called with the parameters of the generator and those that losses own, gives
            their optimizer.
        runtime: device, precision and noise.
        num_classes: classes are drawn uniformly from this many, if the generator, a loss or the
            targets need them.
        steps: batches in the whole run.
        batch_size: of the student's batches, on each rank.
        synthesis_batch_size: of the generator's updates; ``batch_size`` if None.
        generator_steps: updates at a time.
        student_steps: batches between two updates.
        schedule: factor on the initial learning rate, from the share of the run done, in [0, 1).
        clip: largest norm of the gradient of all that the optimizer trains.
        reuse: hand the images of the latest update to the student instead of drawing new ones,
            as in DAFL's joint training.
        replay: supplies its ``fraction`` of each batch; it learns from the fresh images of the
            first batch after an update.
        experience: supplies the last batches before each update, after which come the fresh ones.
        targets: gives soft targets for the classes drawn, if a loss needs them.
        views: augmentations of the generator's images, in order, before teacher and student see
            them in an update.
        local_views: the same for the second view, where a loss compares two.
        augment: likewise of the fresh and replayed images that the student gets.
        student_by_batch: whether an update sees the student normalise by the batch's own
            statistics, as DFAD, ZSKT and MosaicKD do, whose code leaves it in train mode.

    Raises:
        ValueError: for ``reuse`` where not every batch has an update of its size, counts
            below 1, a replay or an experience that leaves no room for fresh images, and a
            teacher that lacks what a loss reads.
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
        replay: Replay | None = None,
        experience: Experience | None = None,
        targets: Targets | None = None,
        views: Sequence[Augmentation] = (),
        local_views: Sequence[Augmentation] = (),
        augment: Sequence[Augmentation] = (),
        student_by_batch: bool = False,
    ) -> None:
        _check(batch_size, synthesis_batch_size, generator_steps, student_steps, reuse, experience)
        self.replay, self.experience, self.clip, self.reuse = replay, experience, clip, reuse
        self.replayed = replay.share(batch_size) if replay else 0
        self.runtime, self.augment, self.fresh = runtime, tuple(augment), batch_size - self.replayed
        self.observe = Observer(
            teacher, student, objective, runtime, views, local_views, student_by_batch
        )
        self.generator: GeneratorNetwork = runtime.prepare(generator).train()  # type: ignore[assignment]
        if replay:
            replay.start(self.generator)
        labelled = generator.conditional or any(objective.ask("needs_label")) or targets
        self.num_classes = num_classes if labelled else None
        spare = runtime.world_size > 1 and _spare(self.generator, self.num_classes, runtime)
        self.parallel = runtime.parallel(runtime.compile(self.generator), spare)
        self.parameters = [*self.generator.parameters(), *self.observe.parameters]
        self.optimizer = optimizer(self.parameters)
        self.schedule = Schedule(self.optimizer, schedule or constant())
        self.targets = targets
        self.steps, self.generator_steps, self.student_steps = steps, generator_steps, student_steps
        self.period = student_steps
        self.synthesis_batch_size = synthesis_batch_size or batch_size
        self.batches = self.updates = self.images_synthesized = 0
        self.losses: dict[str, Tensor] = {}

    def next(self) -> Batch:
        if self.experience and self.experience.due(self.batches, self.student_steps):
            noise = self.runtime.noise("batch", self.batches)
            self.batches += 1
            return self.experience.draw(self.fresh + self.replayed, noise)
        images, label = None, None
        updated = self.batches % self.student_steps == 0
        if updated:
            for _ in range(self.generator_steps):
                images, label = self._update()
        if images is None or not self.reuse:
            noise = self.runtime.noise("batch", self.batches)
            z, label = self._draw(self.fresh, noise)
            with torch.no_grad(), self.runtime.autocast():
                images = self.generator(z, label)
        if self.replay:
            images, label = self._replay(self.replay, images, label, updated)
        images = through(self.augment, images, self.runtime.noise("augment", self.batches))
        if self.experience:
            images = self.experience.rounded(images)
        self.batches += 1
        return Batch(images, label)

    def learned(self, batch: Batch, losses: Losses) -> None:
        if self.experience:
            self.experience.learned(batch, losses)

    def report(self) -> dict[str, Tensor | float]:
        replay = self.replay.losses if self.replay else {}
        return {**self.losses, **replay, "lr_generator": self.optimizer.param_groups[0]["lr"]}

    def counts(self) -> dict[str, int]:
        """Each image counts once, however often it is seen."""
        counts = Counter(
            images_synthesized=self.images_synthesized,
            real_training_inputs_read=0,
        )
        counts.update(self.observe.counts())
        counts.update(self.replay.counts() if self.replay else {})
        return dict(counts)

    def plan(self, steps: int) -> Workload:
        """The work of the updates and the replay; see :class:`~generators.base.Workload`."""
        rounds = -(-steps // self.student_steps)
        images = rounds * self.generator_steps * self.synthesis_batch_size
        planned = Workload(gradients=images * self.observe.queries_per_image)
        if self.replay:
            own = self.replay.plan(self.fresh)
            planned.answers += rounds * own.answers
            planned.gradients += rounds * own.gradients
        if self.experience:
            planned.known_batches = self.experience.replayed(steps, self.student_steps)
        return planned

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.observe.objective.state_dict(),
            "replay": self.replay.state_dict() if self.replay else None,
            "experience": self.experience.state_dict() if self.experience else None,
            "batches": self.batches,
            "updates": self.updates,
            "images_synthesized": self.images_synthesized,
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.observe.objective.load_state_dict(state["objective"])
        if self.replay:
            self.replay.load_state_dict(state["replay"])
        if self.experience:
            self.experience.load_state_dict(state["experience"])
        self.batches = state["batches"]
        self.updates = state["updates"]
        self.images_synthesized = state["images_synthesized"]
        self.losses = {k: v.to(self.runtime.device) for k, v in state["losses"].items()}

    def _update(self) -> tuple[Tensor, Tensor | None]:
        """One step of the generator; returns the images that it was made on, detached."""
        self.schedule.apply(self.batches / self.steps)
        self.observe.objective.at(self.batches / self.steps)
        noise = self.runtime.noise("generator", self.updates)
        z, label = self._draw(self.synthesis_batch_size, noise)
        with self.runtime.autocast():
            images = self.parallel(z, label)
        seen, local = self.observe.look(images, self.updates)
        target = self.targets(label, noise) if self.targets and label is not None else None
        latent = self.generator.latent(z, label)
        losses = self.observe(seen, label, latent, target, local)
        losses.total.backward()
        self.observe.average_gradients()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.observe.commit()
        self.updates += 1
        self.losses = losses.values
        return images.detach(), label

    def _draw(self, size: int, noise: torch.Generator) -> tuple[Tensor, Tensor | None]:
        self.images_synthesized += size
        return draw_latent(self.generator, size, self.num_classes, noise)

    def _replay(
        self, replay: Replay, images: Tensor, label: Tensor | None, updated: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The fresh images, with earlier ones behind them; labels where both kinds have some."""
        images, label = images[: self.fresh], label[: self.fresh] if label is not None else None
        if updated:
            replay.learn(images, label, self.runtime.noise("replay_learn", self.batches))
        noise = self.runtime.noise("replay_draw", self.batches)
        earlier, known = replay.draw(self.replayed, noise)
        self.images_synthesized += self.replayed if replay.synthesizes else 0
        images = torch.cat([images, earlier])
        return images, None if label is None or known is None else torch.cat([label, known])


def _spare(generator: GeneratorNetwork, num_classes: int | None, runtime: Runtime) -> bool:
    """Whether its images leave a parameter of the generator without gradient."""
    trial = copy.deepcopy(generator)
    trial(*draw_latent(trial, 2, num_classes, runtime.noise("trial", 0))).sum().backward()
    return any(p.requires_grad and p.grad is None for p in trial.parameters())


def _check(
    batch_size: int,
    synthesis_batch_size: int | None,
    generator_steps: int,
    student_steps: int,
    reuse: bool,
    experience: Experience | None,
) -> None:
    """Raise a ValueError for settings of :class:`GenerativeSource` that do not fit together."""
    size = batch_size if synthesis_batch_size is None else synthesis_batch_size
    if min(batch_size, size, generator_steps, student_steps) < 1:
        raise ValueError("batch sizes, generator_steps and student_steps must be at least 1")
    if reuse and (student_steps != 1 or size != batch_size):
        raise ValueError(
            "reuse=true hands the images of each update to the student: it needs "
            "student_steps=1 and synthesis_batch_size equal to batch_size"
        )
    if experience and experience.batches >= student_steps:
        raise ValueError(
            f"source.experience replays {experience.batches} of the source.student_steps="
            f"{student_steps} batches between two updates: at least one has to be fresh"
        )
