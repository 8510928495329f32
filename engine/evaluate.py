"""Accuracy, agreement and calibration on the test split, and a look at synthesized inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.runtime import Runtime
from models.classifier import Classifier

BINS = 15  # Guo et al., ICML 2017


class Evaluator:
    """Compares a student with the labels and with its teacher on one split.

    Networks are seen through frozen views in eval mode, so that evaluation changes neither their
    mode nor their statistics. The teacher's predictions are computed once. Ranks share the split.

    Args:
        student: the network to evaluate; the view shares its weights as they change.
        teacher: or None.
        split: an opened test split.
        runtime: of the run.
        batch_size: of evaluation.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier | None,
        split: Any,
        runtime: Runtime,
        batch_size: int = 500,
    ) -> None:
        self.student = student.frozen()
        self.split, self.runtime, self.batch_size = split, runtime, batch_size
        self.guidance = None if teacher is None else self._predictions(teacher.frozen())

    @torch.no_grad()
    def teacher_accuracy(self) -> float | None:
        """Of the teacher on the whole split, as a fraction."""
        if self.guidance is None:
            return None
        right = torch.zeros((), device=self.runtime.device)
        for (_, labels), predicted in zip(self._shard(), self.guidance, strict=True):
            right += (predicted == labels).sum()
        return float(self.runtime.sum(right)) / len(self.split)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """accuracy, ece and, with a teacher, agreement: fractions.

        ``ece`` is the expected calibration error over 15 bins of equal width (Guo et al., 2017).
        """
        device = self.runtime.device
        agree = torch.zeros((), device=device)
        bins = torch.zeros(3, BINS, device=device)  # count, summed confidence, correct
        for i, (images, labels) in enumerate(self._shard()):
            with self.runtime.autocast():
                logits = self.student(images).logits
            confidence, predicted = logits.softmax(1).max(1)
            position = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
            correct = (predicted == labels).float()
            values = (torch.ones_like(correct), confidence, correct)
            for row, value in zip(bins, values, strict=True):
                row.index_add_(0, position, value)
            if self.guidance is not None:
                agree += (predicted == self.guidance[i]).sum()
        self.runtime.sum(agree)
        self.runtime.sum(bins)
        total = len(self.split)
        metrics = {
            "accuracy": float(bins[2].sum()) / total,
            "ece": float((bins[1] - bins[2]).abs().sum()) / total,
        }
        if self.guidance is not None:
            metrics["agreement"] = float(agree) / total
        return metrics

    @torch.no_grad()
    def _predictions(self, teacher: Classifier) -> list[Tensor]:
        with self.runtime.autocast():
            return [teacher(images).logits.argmax(1) for images, _ in self._shard()]

    def _shard(self) -> Any:
        """Every world_size-th batch of the split, beginning with this rank's."""
        for i, batch in enumerate(self.split.batches(self.batch_size)):
            if i % self.runtime.world_size == self.runtime.rank:
                yield batch


class Inspector:
    """What a teacher makes of synthesized inputs.

    Args:
        teacher: its BatchNorm statistics are compared with those of the inputs, if it has any.
        student: to measure agreement where it is being taught.
        runtime: of the run.
    """

    def __init__(self, teacher: Classifier, student: Classifier, runtime: Runtime) -> None:
        self.teacher = teacher.frozen(statistics=True)
        self.student = student.frozen()
        self.runtime = runtime

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Any]:
        """Look at images [B, *shape].

        Returns:
            ``class_histogram``: fraction of each predicted class; ``agreement``; and, where there
            is BatchNorm, ``bn_gap``: ‖μ̂−μ‖₂ + ‖σ̂²−σ²‖₂ averaged over layers.
        """
        with self.runtime.autocast():
            outputs = self.teacher(images)
            student = self.student(images).logits.argmax(1)
        predicted = outputs.logits.argmax(1)
        histogram = torch.bincount(predicted, minlength=outputs.logits.shape[1]) / len(images)
        agreement = (predicted == student).float().mean()
        gaps = [
            (s.mean - s.running_mean).norm() + (s.variance - s.running_variance).norm()
            for s in outputs.statistics
        ]
        gap = torch.stack(gaps).mean() if gaps else agreement.new_zeros(())
        self.runtime.average([histogram, agreement, gap])
        found: dict[str, Any] = {
            "class_histogram": histogram.tolist(),
            "agreement": float(agreement),
        }
        return found | ({"bn_gap": float(gap)} if gaps else {})
