"""Accuracy, agreement and calibration of a student on one split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.diagnostics import Inspector
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
        inspector: is shown the teacher's outputs for the split.

    Attributes:
        tally: [3, classes + 1] labels, the teacher's answers, and right answers by label.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier | None,
        split: Any,
        runtime: Runtime,
        batch_size: int = 500,
        inspector: Inspector | None = None,
    ) -> None:
        self.student = student.frozen()
        self.split, self.runtime, self.batch_size = split, runtime, batch_size
        self.guidance = None if teacher is None else self._predictions(teacher, inspector)

    def teacher_accuracy(self) -> float | None:
        """Of the teacher on the whole split, as a fraction."""
        return None if self.guidance is None else float(self.tally[2].sum()) / len(self.split)

    def guessing_accuracy(self) -> float:
        """Of the teacher, if its answers were dealt out to the inputs at random: Σ_c p_c·q_c with
        the frequencies of the labels p and of the answers q (the chance agreement of Cohen's κ)."""
        labels, answers, _ = self.tally.double() / len(self.split)
        return float((labels * answers).sum())

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
    def _predictions(self, teacher: Classifier, inspector: Inspector | None) -> list[Tensor]:
        view = inspector.reader if inspector else teacher.frozen()
        first = self.runtime.rank * self.batch_size
        predictions = []
        labelled = int(self.split.labels.max()) + 1  # answers beyond are counted together
        self.tally = torch.zeros(3, labelled + 1, device=self.runtime.device)
        for images, labels in self._shard():
            with self.runtime.autocast():
                outputs = view(images)
            if inspector:
                inspector.show(outputs, first)
            first += self.runtime.world_size * self.batch_size
            predictions.append(predicted := outputs.logits.argmax(1))
            right = (predicted == labels).float()
            self.tally[0].index_add_(0, labels, torch.ones_like(right))
            self.tally[1].index_add_(0, predicted.clamp_max(labelled), torch.ones_like(right))
            self.tally[2].index_add_(0, labels, right)
        self.runtime.sum(self.tally)
        return predictions

    def _shard(self) -> Any:
        """Every world_size-th batch of the split, beginning with this rank's."""
        for i, batch in enumerate(self.split.batches(self.batch_size)):
            if i % self.runtime.world_size == self.runtime.rank:
                yield batch
