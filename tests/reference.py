"""Hold the losses against reference values: ``python -m tests.reference FILE.npz``.

The file holds inputs (``logits_student``, ``features_teacher_1``, ...), for each loss its value,
``value/NAME``, and its gradients, ``grad/NAME/INPUT``, of any shapes and any number of classes and
stages. What it holds is checked, in float64; the exit code is 0 where all of it agrees to 1e-5
and there was anything to check. Gradients are rounded to float32 in such files, so that the
errors of theirs are about 1e-8 at best.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.spec import Batch
from distillers.attention import AttentionTransfer
from distillers.base import TransferLoss
from distillers.boundary import ActivationBoundary
from distillers.factor import factor_distance
from distillers.feature import FSP, NST, maps
from distillers.relation import PKT, RKD, CorrelationCongruence, SimilarityPreserving
from distillers.response import DIST, DKD, KD, StandardizedKD
from distillers.review import hierarchical_context_loss
from generators.base import Synthesis
from generators.losses import BatchNormStatistics
from models.classifier import Outputs, Statistics

TOLERANCE = 1e-5
Inputs = Mapping[str, Tensor]
Loss = Callable[[Inputs], Tensor]


def stages(inputs: Inputs, role: str) -> list[Tensor]:
    """The maps of one network from the first stage on; a stage that is missing ends the list."""
    found: list[Tensor] = []
    while (name := f"features_{role}_{len(found)}") in inputs:
        found.append(inputs[name])
    if not found:
        raise KeyError(f"features_{role}_0")
    return found


def of_logits(loss: TransferLoss) -> Loss:
    def computed(inputs: Inputs) -> Tensor:
        x = inputs["logits_student"]
        label = inputs["labels"] if loss.needs_label else None
        value: Tensor = loss(Outputs(x), Outputs(inputs["logits_teacher"]), Batch(x, label))
        return value

    return computed


def of_stages(make: Callable[[list[str]], TransferLoss], last: bool = False) -> Loss:
    """A loss on all stages, or on the last one; it is made for taps of their names."""

    def loss(inputs: Inputs) -> Tensor:
        both = [
            {f"stage{i}": x for i, x in enumerate(stages(inputs, role), 1)}
            for role in ("student", "teacher")
        ]
        names = list(both[0])[-1:] if last else list(both[0])
        return _apply(make(names), *both)

    return loss


def of_embeddings(make: Callable[[list[str]], TransferLoss], teacher: str) -> Loss:
    """A loss on one vector of each network."""

    def loss(inputs: Inputs) -> Tensor:
        student = {"pooled": inputs["embedding_student"]}
        return _apply(make(["pooled"]), student, {"pooled": inputs[teacher]})

    return loss


def _apply(loss: TransferLoss, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    x = next(iter(student.values()))
    value: Tensor = loss(Outputs(x, student), Outputs(x, teacher), Batch(x))
    return value


def factor_transfer(inputs: Inputs) -> Tensor:
    return factor_distance(*maps(inputs["features_student_0"], inputs["features_teacher_0"]))


def hcl_review(inputs: Inputs) -> Tensor:
    return hierarchical_context_loss(stages(inputs, "student"), stages(inputs, "teacher"))


def bn_statistics(inputs: Inputs) -> Tensor:
    x = inputs["features_student_0"]
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    fresh = Statistics(mean, variance, torch.zeros_like(mean), torch.ones_like(mean))
    return BatchNormStatistics()(Synthesis(x, Outputs(x, statistics=[fresh])))


LOSSES: dict[str, Loss] = {
    "kd_t4": of_logits(KD(temperature=4)),
    "kd_logit_standardised_t2": of_logits(StandardizedKD(temperature=2)),
    "dkd_alpha1_beta8_t4": of_logits(DKD(alpha=1, beta=8, temperature=4)),
    "dist_beta1_gamma1_tau1": of_logits(DIST(beta=1, gamma=1, temperature=1)),
    "attention_transfer_p2": of_stages(lambda taps: AttentionTransfer(taps, p=2)),
    "similarity_preserving": of_stages(SimilarityPreserving, last=True),
    "pkt": of_embeddings(PKT, "embedding_teacher"),
    "rkd_distance25_angle50": of_embeddings(
        lambda taps: RKD(taps, distance=25, angle=50), "embedding_teacher"
    ),
    "correlation_congruence": of_embeddings(CorrelationCongruence, "embedding_teacher_same"),
    "nst_poly2": of_stages(NST),
    "fsp": of_stages(FSP),
    "activation_boundary_margin1": of_stages(lambda taps: ActivationBoundary(taps, margin=1)),
    "hcl_review": hcl_review,
    "factor_transfer": factor_transfer,
    "bn_statistics_l2": bn_statistics,
}


@dataclass
class Report:
    """What became of one name; ``errors`` are relative, of the value and of each gradient."""

    computed: float = float("nan")
    reference: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    @property
    def ok(self) -> bool:
        agree = all(error <= TOLERANCE for error in self.errors.values())
        return agree and bool(self.errors) and not self.failure

    def __str__(self) -> str:
        if self.failure:
            return self.failure
        errors = "".join(f"  {name} {error:.1e}" for name, error in self.errors.items())
        reference = "none" if self.reference is None else f"{self.reference:.12g}"
        line = f"computed {self.computed:.12g}  reference {reference}  relative errors"
        return line + (errors or " none, for it holds neither a value nor a gradient")


def check(path: str | Path) -> dict[str, Report]:
    """Every name in the file, with what became of it.

    Raises:
        ValueError: for what is no npz file of numbers.
    """
    try:
        with np.load(path) as file:
            data = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no npz file that can be read: {error}") from None
    names = [key.split("/")[1] for key in data if re.match("(value|grad)/.", key)]
    return {name: _check_one(name, data) for name in dict.fromkeys(names)}


def _check_one(name: str, data: dict[str, np.ndarray]) -> Report:
    if name not in LOSSES:
        return Report(failure=f"no loss of this name; there is: {', '.join(sorted(LOSSES))}")
    inputs = {key: _tensor(x) for key, x in data.items() if "/" not in key and x.dtype.kind in "fi"}
    grad = f"grad/{name}/"
    wanted = [key.removeprefix(grad) for key in data if key.startswith(grad)]
    try:
        value = LOSSES[name](inputs)
        leaves = [inputs[key] for key in wanted]
        gradients = torch.autograd.grad(value, leaves, materialize_grads=True) if wanted else ()
    except KeyError as error:
        return Report(failure=f"the file has no input {error}")
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        return Report(failure=f"cannot be computed on these inputs: {error}")
    report = Report(value.item())
    if (reference := data.get(f"value/{name}")) is not None and reference.size == 1:
        report.reference = float(reference.item())
        report.errors["value"] = _error(np.asarray(report.computed), reference.reshape(()))
    for key, gradient in zip(wanted, gradients, strict=True):
        report.errors[key] = _error(gradient.numpy(), data[grad + key])
    return report


def _tensor(x: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(x)
    return tensor.double().requires_grad_() if tensor.is_floating_point() else tensor.long()


def _error(computed: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over the reference's largest entry; infinite for another shape."""
    if computed.shape != reference.shape:
        return float("inf")
    scale = float(np.abs(reference).max(initial=0)) or 1.0
    return float(np.abs(computed - reference).max(initial=0)) / scale


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tests.reference FILE.npz", file=sys.stderr)
        return 2
    try:
        reports = check(arguments[0])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, report in reports.items():
        print(f"{'ok    ' if report.ok else 'FAILED'} {name}: {report}")
    failed = sum(not report.ok for report in reports.values())
    if not reports:
        print(f"{arguments[0]} has no value/NAME and no grad/NAME/INPUT: nothing was checked")
    else:
        print(f"{len(reports) - failed} of {len(reports)} agree to {TOLERANCE:g}")
    return 1 if failed or not reports else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
