"""Frozen views of teacher and student for synthesis, which cannot change them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.objective import Losses, Objective
from core.runtime import Runtime
from data.augment import Augmentation, through
from data.refused import refusing
from generators.base import Synthesis, SynthesisLoss
from models.classifier import Classifier, Outputs, Statistics

WITHOUT_BATCHNORM = (
    *("dafl", "zskt", "dfad", "zskd", "pre_dfkd", "mosaickd", "psaq_vit", "dfme", "maze"),
)


def unread_statistics(teacher: Classifier, objective: Objective) -> list[str]:
    """A line on BatchNorm layers that eval mode does not run, if a loss reads statistics.

    Raises:
        ValueError: if it runs none.
    """
    if not any(objective.ask("needs_statistics")):
        return []
    check_statistics(teacher, objective)
    view = teacher.frozen(statistics=True)
    if not view.measured:
        raise ValueError(
            f"the teacher {teacher.name} runs no BatchNorm layer in eval mode, whose statistics "
            f"this method inverts; methods that work without: {_others(teacher)}"
        )
    idle = ", ".join(view.idle[:4]) + (", ..." if len(view.idle) > 4 else "")
    return [f"synthesis: eval mode does not run the teacher's {idle}: left out"] if idle else []


def check_statistics(teacher: Classifier, objective: Objective) -> None:
    """Raise a ValueError if a loss reads BatchNorm statistics that the teacher does not have."""
    if any(objective.ask("needs_statistics")) and not teacher.batchnorms():
        raise ValueError(
            f"the teacher {type(teacher.module).__name__} has no BatchNorm layers, whose "
            f"statistics this method inverts; methods that work without: {_others(teacher)}"
        )


def _others(teacher: Classifier) -> str:
    """The methods that need no BatchNorm, but for those that refuse what the teacher takes."""
    refused = refusing(teacher.takes.modality)
    return ", ".join(name for name in WITHOUT_BATCHNORM if name not in refused)


class Observer:
    """Images to the losses of a synthesis objective.

    The gradient passes through teacher and student to the images and accumulates nowhere else: both
    are frozen views, without parameter gradients, with the taps that the losses ask for. The
    student runs only where a loss reads its outputs, in eval mode, as in the code of CMI, FastDFKD,
    NAYER and DFME, or by the statistics of the batch.

    Args:
        teacher: what the images are synthesized from.
        student: read where a loss asks for it.
        objective: called with a :class:`~generators.base.Synthesis`.
        runtime: device, precision and noise.
        views: augmentations, in order, of what :meth:`look` shows to both networks.
        local_views: the same for the second view, where a loss compares two.
        student_by_batch: whether the student's BatchNorm layers normalise by the batch's own
            statistics, as in DFAD, ZSKT and MosaicKD, whose code leaves it in train mode.

    Attributes:
        parameters: those that the losses own, to be trained beside the generator or the images.
        queries_per_image: how often the teacher sees an image of one call.

    Raises:
        ValueError: if the teacher lacks what a loss reads, or a second view is not named.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        objective: Objective,
        runtime: Runtime,
        views: Sequence[Augmentation] = (),
        local_views: Sequence[Augmentation] = (),
        student_by_batch: bool = False,
    ) -> None:
        check_statistics(teacher, objective)
        taps = [tap for taps in objective.ask("teacher_taps") for tap in taps]
        self.teacher = teacher.frozen(taps, any(objective.ask("needs_statistics")))
        seen = [tap for taps in objective.ask("student_taps") for tap in taps]
        needed = any(objective.ask("needs_student"))
        self.student = student.frozen(seen, by_batch=student_by_batch) if needed else None
        self.objective: Objective = runtime.prepare(objective)  # type: ignore[assignment]
        self.runtime = runtime
        self.needs_local = any(objective.ask("needs_local"))
        if self.needs_local and not local_views:
            raise ValueError("a loss compares two views of an input: name synthesis.local_views")
        self.views, self.local_views = tuple(views), tuple(local_views)
        self.all_read_student = all(objective.ask("needs_student"))
        self.queries_per_image = 2 if self.needs_local else 1
        self.parameters: list[nn.Parameter] = [p for p in objective.parameters() if p.requires_grad]
        self.remembering = [loss for loss in _losses(objective) if _remembers(loss)]
        self.keeping = [loss for loss in self.remembering if loss.remembers_best]
        self.latest: Synthesis | None = None
        self.kept: Synthesis | None = None
        runtime.compile(self.teacher.module)
        if self.student is not None:
            runtime.compile(self.student.module)

    def look(self, images: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        """The images through the views of look number ``index``, and their second view or None."""
        seen = through(self.views, images, self.runtime.noise("view", index))
        if not self.needs_local:
            return seen, None
        return seen, through(self.local_views, images, self.runtime.noise("local view", index))

    def __call__(
        self,
        images: Tensor,
        label: Tensor | None,
        latent: Tensor | None = None,
        target: Tensor | None = None,
        local: Tensor | None = None,
        student_knows: bool = True,
    ) -> Losses:
        """The losses of one batch.

        Args:
            images: [B, *shape] in the specification's range.
            label: [B], the classes aimed at, or None.
            latent: [B, latent_size] that the images were made from, or None.
            target: [B, C], the softmax aimed at, or None.
            local: a second view of the images, needed where a loss compares two.
            student_knows: False while the student has learned nothing yet, which leaves out the
                losses that read it.

        Raises:
            ValueError: if no loss is left.
        """
        if self.all_read_student and not student_knows:
            raise ValueError(
                "every loss of synthesis reads the student, which knows nothing during a warm-up: "
                "use source.warmup=0, or add a loss that does not"
            )
        with self.runtime.autocast():
            teacher = self.teacher(images)
            student = self.student(images) if self.student and student_knows else None
            second = self.teacher(local) if self.needs_local and local is not None else None
        synthesis = Synthesis(images, teacher, student, label, latent, target, second)
        losses = self.objective(synthesis, skip=() if student_knows else ("needs_student",))
        if self.remembering:
            self.latest = _each(Tensor.detach, synthesis)  # the graph holds every activation
        if not losses.total.requires_grad:  # all losses are off
            losses.total = losses.total + 0 * images.sum()
        losses.teacher_logits = teacher.logits.detach()
        return losses  # type: ignore[no-any-return]

    def counts(self) -> dict[str, int]:
        """How much the losses have read of a data set other than the teacher's, if any."""
        read = self.objective.ask("out_of_domain_inputs_read")
        return {"out_of_domain_inputs_read": sum(read)} if read else {}

    def keep(self, better: Tensor) -> None:
        """The latest batch is the round's best so far, if ``better`` [] says so."""
        if self.keeping and self.latest is not None:
            new = _read_by(self.keeping, self.latest)
            old = self.kept or new
            self.kept = _each(lambda a, b: torch.where(better, a, b), new, old)

    @torch.no_grad()
    def commit(self) -> None:
        """Let losses with a memory remember the finished batch: the latest, or the best."""
        for loss in self.remembering:
            finished = (self.kept if loss.remembers_best else None) or self.latest
            assert finished is not None, "nothing was observed yet"
            loss.commit(finished)
        self.latest = self.kept = None

    def average_gradients(self) -> None:
        """The losses' own parameters are the same on every rank, and stay so."""
        self.runtime.average_gradients(self.parameters)


def _losses(objective: Objective) -> list[SynthesisLoss]:
    return [weighted.loss for weighted in objective.losses.values()]  # type: ignore[union-attr,misc]


def _remembers(loss: nn.Module) -> bool:
    return isinstance(loss, SynthesisLoss) and type(loss).commit is not SynthesisLoss.commit


def _read_by(losses: Sequence[SynthesisLoss], synthesis: Synthesis) -> Synthesis:
    """The part of a batch that the losses read, as their attributes say.

    To select among all of a deep teacher's statistics would take hundreds of launches.
    """
    taps = {tap for loss in losses for tap in loss.teacher_taps}
    statistics = any(loss.needs_statistics for loss in losses)

    def part(outputs: Outputs) -> Outputs:
        features = {tap: x for tap, x in outputs.features.items() if tap in taps}
        return Outputs(outputs.logits, features, outputs.statistics if statistics else [])

    return dataclasses.replace(
        synthesis,
        teacher=part(synthesis.teacher),
        student=synthesis.student if any(loss.needs_student for loss in losses) else None,
        local=synthesis.local and part(synthesis.local),
    )


def _each(function: Callable[..., Tensor], *syntheses: Synthesis) -> Synthesis:
    """What the function makes of the tensors at each place of the syntheses, which are alike."""

    def made(*values: Any) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return function(*values)
        if isinstance(first, list):
            return [made(*items) for items in zip(*values, strict=True)]
        if isinstance(first, dict):
            return {key: made(*(value[key] for value in values)) for key in first}
        if isinstance(first, (Synthesis, Outputs, Statistics)):
            names = [field.name for field in dataclasses.fields(first)]
            return type(first)(**{n: made(*(getattr(v, n) for v in values)) for n in names})
        return first

    return made(*syntheses)  # type: ignore[no-any-return]
