"""Synthesis without a generator: pixels optimised directly (DeepInversion and ADI, CVPR 2020)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from data.spec import Batch
from engine.objective import Objective
from engine.runtime import Runtime
from engine.schedules import Factor, Schedule, constant
from generators.bank import Bank
from generators.observer import Observer
from models.classifier import Classifier

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class InversionSource:
    """Every ``student_steps`` batches, a round adds freshly inverted images to a bank.

    A round starts from Gaussian noise and from classes drawn uniformly, and minimises the
    objective over the images. As in the authors' code the variable is the normalised image,
    clamped after each step to what the value range allows, and every step looks at the images
    shifted by up to ``jitter`` pixels and, at every other step or so, mirrored. The images of the
    last step are kept: with a learning rate that ends near zero they are as good as the best.

    A round may take minutes. Asked to stop, it raises :class:`engine.runtime.Stopped` and leaves
    this object as it was before the round, which the next run then repeats to the same bits.

    Args:
        teacher: what the images are synthesized from.
        student: read where a term asks for it (ADI), and never changed.
        objective: of the images; called with a :class:`~generators.base.Synthesis`.
        optimizer: called with a list of one tensor, gives its optimizer.
        runtime: device, precision and noise.
        num_classes: how many classes are aimed at.
        batch_size: of the student's batches, on each rank.
        synthesis_batch_size: images a round adds.
        iterations: optimizer steps in a round.
        student_steps: batches between two rounds.
        capacity: of the bank; the oldest images leave first.
        jitter: largest shift, in pixels.
        flip: whether images may be mirrored left to right; not for digits or letters.
        schedule: factor on the initial learning rate, from the share of a round done, in [0, 1).
        augment: applied in order to the images that the student gets, on the device; each is
            called with images in the value range and a random generator.

    Raises:
        ValueError: for counts below 1, and a teacher that lacks what a term reads.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        objective: Objective,
        optimizer: Callable[..., torch.optim.Optimizer],
        runtime: Runtime,
        num_classes: int,
        batch_size: int,
        synthesis_batch_size: int = 256,
        iterations: int = 2000,
        student_steps: int = 400,
        capacity: int = 50_000,
        jitter: int = 2,
        flip: bool = True,
        schedule: Factor | None = None,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        if min(batch_size, synthesis_batch_size, iterations, student_steps) < 1:
            raise ValueError("batch sizes, iterations and student_steps must be at least 1")
        self.observe = Observer(teacher, student, objective, runtime)
        self.spec = teacher.spec
        self.bank = Bank(self.spec, capacity, runtime.device)
        self.optimizer = optimizer
        self.runtime, self.num_classes = runtime, num_classes
        self.batch_size, self.synthesis_batch_size = batch_size, synthesis_batch_size
        self.iterations, self.student_steps = iterations, student_steps
        self.jitter, self.flip = jitter, flip
        self.schedule, self.augment = schedule or constant(), tuple(augment)
        self.batches = 0
        self.rounds = 0
        self.terms: dict[str, Tensor] = {}

    def next(self) -> Batch:
        if self.batches % self.student_steps == 0:
            images, label, terms = self._invert()
            # Nothing of this object may change before here: _invert may have raised Stopped.
            self.bank.add(images, label)
            self.rounds += 1
            self.terms = terms
        noise = self.runtime.noise("batch", self.batches)
        images, label, index = self.bank.sample(self.batch_size, noise)
        for augment in self.augment:
            images = augment(images, noise)
        self.batches += 1
        return Batch(images, images, label, index)

    def report(self) -> dict[str, Tensor | float]:
        """The terms at the end of the latest round; its learning rate has come to its end there."""
        return dict(self.terms)

    def counts(self) -> dict[str, int]:
        """An image counts once, a query of the teacher with every iteration that saw it."""
        images = self.rounds * self.synthesis_batch_size
        return {
            "images_synthesized": images,
            "teacher_queries": images * self.iterations,
            "real_training_inputs_read": 0,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "bank": self.bank.state_dict(),
            "objective": self.observe.objective.state_dict(),
            "batches": self.batches,
            "rounds": self.rounds,
            "terms": self.terms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state["bank"])
        self.observe.objective.load_state_dict(state["objective"])
        self.batches = state["batches"]
        self.rounds = state["rounds"]
        self.terms = {k: v.to(self.runtime.device) for k, v in state["terms"].items()}

    def _invert(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One round: images in the value range, the classes aimed at, and the last terms."""
        noise = self.runtime.noise("inversion", self.rounds)
        views = random.Random(noise.initial_seed())  # on the host: no waiting for the device
        shape, device = (self.synthesis_batch_size, *self.spec.shape), self.runtime.device
        label = torch.randint(self.num_classes, shape[:1], generator=noise, device=device)
        pixels = torch.randn(shape, generator=noise, device=device)
        ends = pixels.new_tensor(self.spec.range).view(2, *(1,) * len(self.spec.shape))
        low, high = self.spec.normalize(ends.expand(2, *self.spec.shape))
        pixels.clamp_(low, high).requires_grad_()
        optimizer = self.optimizer([pixels])
        schedule = Schedule(optimizer, self.schedule)
        for i in range(self.iterations):
            self.runtime.raise_if_stopped()
            schedule.apply(i / self.iterations)
            seen = self._jittered(self.spec.denormalize(pixels), views)
            losses = self.observe(seen, label)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(low, high)
        return self.spec.denormalize(pixels.detach()), label, losses.terms

    def _jittered(self, images: Tensor, views: random.Random) -> Tensor:
        """One shift, and perhaps a mirror image, for the whole batch."""
        down, right = (views.randint(-self.jitter, self.jitter) for _ in range(2))
        images = images.roll((down, right), dims=(-2, -1))
        return images.flip(-1) if self.flip and views.random() < 0.5 else images
