"""Accuracy, agreement and calibration of a student on one split."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.runtime import Runtime
from engine.diagnostics import Inspector
from models.classifier import Classifier

BINS = 15  # Guo et al., ICML 2017


@dataclass
class Answers:
    """A student's predictions for n inputs; tensors [n] on the device.

    Args:
        predicted: class of the largest logit.
        confidence: its probability.
        labels: or None where the split has none.
        guidance: the teacher's predictions, or None.
        classes: that the student tells apart.
    """

    predicted: Tensor
    confidence: Tensor
    labels: Tensor | None
    guidance: Tensor | None
    classes: int

    @property
    def compared(self) -> tuple[Tensor | None, Tensor | None]:
        """What the predictions are compared with: labels, the teacher's predictions."""
        return self.labels, self.guidance


@dataclass
class Measured:
    """Fractions of one split; None stands for what needs labels or a teacher that are missing.

    Args:
        inputs: how many.
        reference: what decides an input's class below: its "label", or else the "teacher".
        accuracy, ece, agreement, ece_to_teacher: see :class:`Evaluator`.
        teacher_accuracy: on the same inputs.
        classes: for each its number of ``inputs`` and, over these, ``accuracy``, ``agreement`` and
            mean ``confidence``; None where a class has no input.
        confusion: [class, prediction, number of inputs] in ascending order, zeros left out.
    """

    inputs: int
    reference: str
    accuracy: float | None
    ece: float | None
    agreement: float | None
    ece_to_teacher: float | None
    teacher_accuracy: float | None
    classes: list[dict[str, Any]]
    confusion: list[list[int]]


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
        inspector: receives the teacher's outputs for the split.

    Attributes:
        tally: [3, classes + 1] labels, the teacher's answers, and right answers by label; None
            without teacher or labels.
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
        self.tally: Tensor | None = None
        self.guidance = None if teacher is None else self._predictions(teacher, inspector)

    def beside(self, student: Classifier) -> Evaluator:
        """The same for another student; the teacher's answers are shared."""
        other = copy.copy(self)
        other.student = student.frozen()
        return other

    def teacher_accuracy(self) -> float | None:
        """The teacher's on the whole split, as a fraction; None without teacher or labels."""
        return None if self.tally is None else float(self.tally[2].sum()) / len(self.split)

    def guessing_accuracy(self) -> float:
        """The teacher's, if its answers were assigned to the inputs at random: Σ_c p_c·q_c with
        the frequencies of the labels p and of the answers q (the chance agreement of Cohen's κ)."""
        assert self.tally is not None, "there are labels and a teacher"
        labels, answers, _ = self.tally.double() / len(self.split)
        return float((labels * answers).sum())

    def __call__(self) -> dict[str, float]:
        """Fractions: accuracy and ece where the split has labels, agreement with a teacher.

        ``ece`` is the expected calibration error over 15 bins of equal width (Guo et al., 2017).
        Without labels the truth is unknown: ``ece_to_teacher`` is the same with agreement in the
        place of accuracy: how far its confidence is from how often the teacher agrees.
        """
        return self._figures(self._answers())

    def measure(self) -> Measured:
        """The same figures, and those of each class; in a single process.

        Raises:
            ValueError: if there are neither labels nor a teacher to compare with, or answers
                are not finite.
        """
        assert self.runtime.world_size == 1, "each rank would see its own rows only"
        answers = self._answers()
        reference = answers.guidance if answers.labels is None else answers.labels
        if reference is None:
            raise ValueError(
                "the data has no labels, so only agreement with a teacher can be "
                "measured: give teacher=NAME teacher.checkpoint=FILE"
            )
        if strange := int((~answers.confidence.isfinite()).sum()):
            raise ValueError(f"the answers to {strange} of {len(self.split)} inputs are not finite")
        figures, count = self._figures(answers), answers.classes
        columns = {"inputs": torch.ones_like(answers.confidence), "confidence": answers.confidence}
        for name, compared in zip(("accuracy", "agreement"), answers.compared, strict=True):
            if compared is not None:
                columns[name] = (answers.predicted == compared).float()
        sums = torch.zeros(count, len(columns), dtype=torch.float64, device=self.runtime.device)
        sums.index_add_(0, reference, torch.stack([*columns.values()], 1).double())
        pairs, times = torch.unique(reference * count + answers.predicted, return_counts=True)
        return Measured(
            inputs=len(self.split),
            reference="teacher" if answers.labels is None else "label",
            accuracy=figures.get("accuracy"),
            ece=figures.get("ece"),
            agreement=figures.get("agreement"),
            ece_to_teacher=figures.get("ece_to_teacher"),
            teacher_accuracy=self.teacher_accuracy(),
            classes=[_means(dict(zip(columns, row, strict=True))) for row in sums.tolist()],
            confusion=torch.stack([pairs // count, pairs % count, times], 1).tolist(),
        )

    @torch.no_grad()
    def _answers(self) -> Answers:
        """One pass over this rank's rows; the device never waits."""
        predicted, confidence, labels, classes = [], [], [], 0
        for images, truth in self._shard():
            with self.runtime.autocast():
                logits = self.student(images).logits
            sure, answer = logits.softmax(1).max(1)
            classes = logits.shape[1]
            predicted.append(answer)
            confidence.append(sure)
            labels.append(truth)
        known = not any(truth is None for truth in labels)
        return Answers(
            predicted=self._join(predicted),
            confidence=self._join(confidence).float(),
            labels=self._join(labels) if known else None,
            guidance=None if self.guidance is None else self._join(self.guidance),
            classes=classes,
        )

    def _join(self, parts: list[Tensor]) -> Tensor:
        """All rows; none, where there are more ranks than batches."""
        empty = torch.zeros(0, dtype=torch.long, device=self.runtime.device)
        return torch.cat(parts) if parts else empty

    def _figures(self, answers: Answers) -> dict[str, float]:
        """Of all ranks' rows, in one transfer from the device."""
        position = (answers.confidence * BINS).ceil().long().clamp(1, BINS) - 1
        bins = torch.zeros(3, BINS, device=self.runtime.device)  # confidence, correct, agreeing
        bins[0].index_add_(0, position, answers.confidence)
        for row, reference in zip(bins[1:], answers.compared, strict=True):
            if reference is not None:
                row.index_add_(0, position, (answers.predicted == reference).float())
        self.runtime.sum(bins)
        gaps = (bins[0] - bins[1:]).abs()
        right, agreeing, gap, distance = torch.cat([bins[1:].sum(1), gaps.sum(1)]).tolist()
        total = len(self.split)
        figures: dict[str, float] = {}
        if answers.labels is not None:
            figures |= {"accuracy": right / total, "ece": gap / total}
        if answers.guidance is not None:
            figures |= {"agreement": agreeing / total}
            if answers.labels is None:
                figures |= {"ece_to_teacher": distance / total}
        return figures

    @torch.no_grad()
    def _predictions(self, teacher: Classifier, inspector: Inspector | None) -> list[Tensor]:
        view = inspector.reader if inspector else teacher.frozen()
        first = self.runtime.rank * self.batch_size
        predictions = []
        if self.split.labelled:
            count = int(self.split.labels.max()) + 1  # answers beyond are counted together
            self.tally = torch.zeros(3, count + 1, device=self.runtime.device)
        for images, labels in self._shard():
            with self.runtime.autocast():
                outputs = view(images)
            if inspector:
                inspector.show(outputs, first)
            first += self.runtime.world_size * self.batch_size
            predictions.append(predicted := outputs.logits.argmax(1))
            if self.tally is not None:
                self._count(self.tally, labels, predicted)
        if self.tally is not None:
            self.runtime.sum(self.tally)
        return predictions

    def _count(self, tally: Tensor, labels: Tensor, predicted: Tensor) -> None:
        right = (predicted == labels).float()
        tally[0].index_add_(0, labels, torch.ones_like(right))
        tally[1].index_add_(0, predicted.clamp_max(tally.shape[1] - 1), torch.ones_like(right))
        tally[2].index_add_(0, labels, right)

    def _shard(self) -> Any:
        """Every world_size-th batch of the split, beginning with this rank's."""
        for i, batch in enumerate(self.split.batches(self.batch_size)):
            if i % self.runtime.world_size == self.runtime.rank:
                yield batch


def _means(sums: dict[str, float]) -> dict[str, Any]:
    """Sums over the inputs of one class as their number and means."""
    n = int(sums["inputs"])
    means = {
        name: sums[name] / n if n and name in sums else None
        for name in ("accuracy", "agreement", "confidence")
    }
    return {"inputs": n} | means
