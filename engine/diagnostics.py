"""How a teacher sees synthesized inputs, compared with real test inputs."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.runtime import Runtime
from models.classifier import Classifier, Outputs

LOOK = 512  # synthesized inputs that an evaluation looks at, all ranks together
WIDEST = 2048  # features of the Inception network that FID is named after; C grows quadratically
COVERED = 0.95  # of the inputs, so that a few strays do not hide that the others are alike
FEW_CLASSES = 0.5  # of the classes that as many inputs of random classes would show
ALIKE = 1e-6  # of the largest feature: test inputs no further apart differ by rounding alone
NEAR_DUPLICATES = 0.1  # diversity, where 1 is that of test inputs


@dataclass
class Gaussian:
    """Mean [d] and a root R [k, d] of the covariance C = RᵀR; float64 on the CPU."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Gaussian:
        """Fitted to rows [n, d], n > 1; the covariance is the unbiased one."""
        x = x.double().cpu()
        mean = x.mean(0)
        return cls(mean, (x - mean) / (len(x) - 1) ** 0.5)

    @classmethod
    def of_sums(cls, count: int, total: Tensor, products: Tensor) -> Gaussian:
        """The same from Σx [d] and Σxxᵀ [d, d] in float64."""
        total, products = total.cpu(), products.cpu()
        mean = total / count
        values, vectors = torch.linalg.eigh((products - total.outer(mean)) / (count - 1))
        return cls(mean, values.clamp_min(0).sqrt()[:, None] * vectors.T)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖μ₁−μ₂‖² + tr(C₁ + C₂ − 2(C₁C₂)^½), as in FID (Heusel et al., NeurIPS 2017, eq. 6).

    The trace of (C₁C₂)^½ is the sum of the singular values of R₁R₂ᵀ: their squares are the
    eigenvalues of C₁^½C₂C₁^½. So the covariances may be singular, and no matrix root is needed.
    """
    spread = a.root.square().sum() + b.root.square().sum()
    shared = torch.linalg.svdvals(a.root @ b.root.T).sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + spread - 2 * shared))


def nearest_neighbour(x: Tensor) -> float:
    """Mean distance of each row [n, d] to the nearest other one, n > 1."""
    distances = torch.cdist(x.double(), x.double())  # float32 would not tell near-duplicates apart
    return float(distances.fill_diagonal_(torch.inf).amin(1).mean())


def class_balance(histogram: list[float]) -> float:
    """Entropy of the classes' fractions, divided by that of equal ones; in [0, 1]."""
    entropy = sum(-p * math.log(p) for p in histogram if p)
    return min(1.0, max(0.0, entropy / math.log(max(2, len(histogram)))))


def collapse(histogram: list[float], count: int, diversity: float | None) -> dict[str, str]:
    """Warnings about inputs of these classes and this diversity; empty if there are none.

    Args:
        histogram: fraction of each predicted class.
        count: of inputs: few inputs cannot show many classes.
        diversity: see :class:`Inspector`.
    """
    classes, covered, used = len(histogram), 0.0, 0
    for p in sorted(histogram, reverse=True):
        if covered >= COVERED - 1e-6:
            break
        covered, used = covered + p, used + 1
    found = {}
    if used <= FEW_CLASSES * classes * (1 - (1 - 1 / classes) ** count):
        found["few_classes"] = (
            f"{covered:.0%} of the synthesized inputs fall into {used} of {classes} classes"
        )
    if diversity is not None and diversity < NEAR_DUPLICATES:
        found["near_duplicates"] = (
            f"the synthesized inputs are near-duplicates: diversity {diversity:.2g}, "
            "while that of test inputs is 1"
        )
    return found


def announce(found: Mapping[str, Any], before: Mapping[str, Any], step: int) -> None:
    """Print the warnings that the previous evaluation did not have."""
    clear = "\r\033[K" if sys.stdout.isatty() else ""  # of the progress line
    for name, words in found.get("warnings", {}).items():
        if name not in before.get("warnings", {}):
            print(f"{clear}warning at step {step}: {words}", flush=True)


class Reference:
    """What test inputs look like in a feature space: their Gaussian, and a sample of them.

    Args:
        rows: in the test split.
        width: of the features.
        runtime: of the run; each rank adds its share of the rows.
    """

    def __init__(self, rows: int, width: int, runtime: Runtime) -> None:
        self.rows, self.runtime = rows, runtime
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=runtime.device)
        self._total, self._products = zeros(width), zeros(width, width)
        # Evenly spaced, since a split may be sorted by class.
        self._chosen = pick_evenly(torch.arange(rows), min(rows, LOOK))
        self._sample = zeros(len(self._chosen), width)
        self._seen = 0
        self._summary: tuple[Gaussian, Tensor] | None = None

    def add(self, features: Tensor, first: int) -> None:
        """Features [n, width] of the test inputs from row ``first`` on."""
        x = features.double()
        self._total += x.sum(0)
        self._products += x.T @ x
        low, high = torch.searchsorted(self._chosen, torch.tensor([first, first + len(x)])).tolist()
        self._sample[low:high] = x[(self._chosen[low:high] - first).to(x.device)]
        self._seen += len(x)

    def summary(self) -> tuple[Gaussian, Tensor]:
        """Of all rows on all ranks; and some of them [min(rows, LOOK), width]."""
        if self._summary is None:
            seen = self.runtime.sum(torch.tensor(self._seen, device=self.runtime.device))
            assert int(seen) == self.rows, "every test input is to be added, once"
            for tensor in (self._total, self._products, self._sample):
                self.runtime.sum(tensor)
            gaussian = Gaussian.of_sums(self.rows, self._total, self._products)
            self._summary = gaussian, self._sample
        return self._summary


class Inspector:
    """Compares synthesized inputs with test inputs, as the teacher sees both.

    They are compared in the space of the teacher's penultimate features (its tap ``pooled``), or of
    its logits if it has no such tap, hides it (a black box), or has more than 2048 features. During
    an evaluation the evaluator passes it the outputs of ``reader``, a view of the teacher, for the
    test split.

    Args:
        teacher: its BatchNorm statistics are compared with those of the inputs, if it has any.
        student: to measure its agreement with the teacher on what it is taught.
        runtime: of the run.
        rows: in the test split; 0 where there are no real inputs to compare with.
    """

    def __init__(
        self, teacher: Classifier, student: Classifier, runtime: Runtime, rows: int
    ) -> None:
        self.teacher, self.student, self.runtime = _view(teacher), student.frozen(), runtime
        # Without the statistics, which make a pass over the test split half as long again.
        self.reader = teacher.frozen(self.teacher.taps)
        with torch.no_grad():  # a rank may have no test input that would tell the width
            blank = self.reader(torch.zeros(1, *teacher.takes.shape, device=runtime.device))
        pooled = blank.features.get("pooled")
        self.space = "logits" if pooled is None or pooled.numel() > WIDEST else "pooled"
        width = self._features(blank).shape[1]
        self.reference = Reference(rows, width, runtime) if rows else None

    def show(self, outputs: Outputs, first: int) -> None:
        """What ``reader`` gives for the test inputs from row ``first`` on; each row once."""
        if self.reference is not None:
            self.reference.add(self._features(outputs), first)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Any]:
        """Measure images [B, *shape], as many on every rank; the findings are those of all ranks.

        Returns:
            ``class_histogram``: fraction of each predicted class; ``class_balance``: its entropy
            in [0, 1]; ``teacher_entropy``: of the teacher's prediction for one input, the mean in
            nats; ``agreement``; where there is BatchNorm, ``bn_gap``: ‖μ̂−μ‖₂ + ‖σ̂²−σ²‖₂
            averaged over layers; ``feature_space``; of the latest 512 inputs and in that space,
            ``frechet_distance``, to the whole test split, and ``diversity``: the mean distance to
            the nearest neighbour, divided by that among equally many test inputs; ``warnings``.

        A sample of 512 biases the Fréchet distance: real inputs score above 0 too, the more so the
        fewer they are. It compares runs with one another, but not with published distances. An
        input that a source hands out twice is its own near-duplicate.
        """
        with self.runtime.autocast():
            outputs = self.teacher(images)
            student = self.student(images).logits
        found = self._answers(outputs, student)
        found |= {"feature_space": self.space} | self._compare(self._features(outputs))
        count = len(images) * self.runtime.world_size
        found["warnings"] = collapse(found["class_histogram"], count, found.get("diversity"))
        return found

    def _answers(self, outputs: Outputs, student: Tensor) -> dict[str, Any]:
        """The findings that need only the outputs and the student's logits."""
        predicted = outputs.logits.argmax(1)
        histogram = torch.bincount(predicted, minlength=outputs.logits.shape[1]) / len(predicted)
        entropy = torch.special.entr(outputs.logits.softmax(1)).sum(1).mean()
        agreement = (predicted == student.argmax(1)).float().mean()
        gaps = [
            (s.mean - s.running_mean).norm() + (s.variance - s.running_variance).norm()
            for s in outputs.statistics
        ]
        gap = torch.stack(gaps).mean() if gaps else agreement.new_zeros(())
        self.runtime.average([histogram, entropy, agreement, gap])
        fractions = histogram.tolist()
        found = {
            "class_histogram": fractions,
            "class_balance": class_balance(fractions),
            "teacher_entropy": float(entropy),
            "agreement": float(agreement),
        }
        return found | ({"bn_gap": float(gap)} if gaps else {})

    def _compare(self, features: Tensor) -> dict[str, float]:
        """Fréchet distance and diversity, unless there is a single input on either side.

        If all test inputs look alike, there is no diversity to compare with.
        """
        if self.reference is None:
            return {}
        made = self._gather(features[-max(1, LOOK // self.runtime.world_size) :].double())
        count = min(len(made), self.reference.rows)
        if count < 2:
            return {}
        real, sample = self.reference.summary()
        found = {"frechet_distance": frechet_distance(Gaussian.of(made), real)}
        usual = nearest_neighbour(pick_evenly(sample, count))
        if usual > ALIKE * float(sample.abs().max()):
            found["diversity"] = nearest_neighbour(pick_evenly(made, count)) / usual
        return found

    def _features(self, outputs: Outputs) -> Tensor:
        chosen = outputs.logits if self.space == "logits" else outputs.features["pooled"]
        return chosen.flatten(1)

    def _gather(self, x: Tensor) -> Tensor:
        """The rows of every rank."""
        everyone = x.new_zeros(self.runtime.world_size, *x.shape)
        everyone[self.runtime.rank] = x
        return self.runtime.sum(everyone).flatten(0, 1)


def pick_evenly(x: Tensor, count: int) -> Tensor:
    """``count`` evenly spaced rows."""
    return x[torch.arange(count, device=x.device) * len(x) // count]


def _view(teacher: Classifier) -> Classifier:
    """As much of a teacher as it shows."""
    for taps, statistics in ((("pooled",), True), ((), True)):
        try:
            return teacher.frozen(taps, statistics)
        except ValueError:
            continue
    return teacher.frozen()
