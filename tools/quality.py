"""The knowledge quality of a network's layers: Q = S + √(I·E), and its three parts.

python -m tools.quality RUN              the stages of the network that a run has trained
python -m tools.quality RUN PATH...      other modules of it
python -m tools.quality RUN config_path=DIR          of a run with parts of yours, from DIR

This is the measure by which feature-only distillation chooses the teacher's layers (Cooper et al.,
Logit-Based Losses Limit the Effectiveness of Feature Knowledge Distillation, 2025,
arXiv:2511.14981). It reads real training data.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.runtime import Runtime
from data.dataset import Dataset
from engine.parts import build_dataset
from engine.student import student_of
from engine.trust import read_found, trusted_alone
from models.classifier import Classifier
from models.taps import stage_taps

PER_CLASS = 500  # the authors' limit
BATCH = 256


@dataclass
class Quality:
    """Separation S, information I and efficiency E of one layer."""

    separation: float
    information: float
    efficiency: float

    @property
    def total(self) -> float:
        """Q = S + √(I·E)."""
        return self.separation + math.sqrt(self.information * self.efficiency)


def quality(features: Tensor, labels: Tensor, population: int) -> Quality:
    """The parts of Q as the authors' code computes them; the paper's text was not at hand.

    With c the absolute cosine of two inputs' features, and averages over classes:

    - S = mean c within a class − mean c between two classes;
    - I = (1 − smallest c within a class)·H/log 5, H the entropy of the normalised spectrum of a
      class's covariance. The code cuts off a far tail of the spectrum first, which is left out;
    - E = 2·(distance to the nearest input of another class)/(mean norm)·(``population``/π)^(1/D),
      D the smaller of N and the feature's dimension.

    Args:
        features: [N, ...], flattened here; neither centred nor scaled.
        labels: [N].
        population: size of the data set that the inputs were drawn from.

    Raises:
        ValueError: unless there are two classes, and two inputs of each.
    """
    x = features.flatten(1)
    classes = [labels == c for c in labels.unique()]
    if len(classes) < 2 or min(int(c.sum()) for c in classes) < 2:
        raise ValueError("a layer's quality takes two classes and two inputs of each: give more")
    within, smallest, between, nearest = _compare(x, classes)
    entropy = _mean([_entropy(x[mine]) for mine in classes])
    norm = _mean([x[mine].norm(dim=1).mean() for mine in classes])
    spread = (population / math.pi) ** (1 / min(x.shape))
    return Quality(
        separation=within - between,
        information=(1 - smallest) * entropy / math.log(5),
        efficiency=2 * nearest / max(norm, sys.float_info.min) * spread,
    )


def quality_of_run(
    run: Path, paths: Sequence[str] = (), inputs: int = 5000, trusted: Sequence[str] = ()
) -> dict[str, Quality]:
    """The quality of layers of a finished run's network, on its training data.

    Args:
        run: a run directory.
        paths: taps; by default the stages that the network names.
        inputs: how many at most, the same number of each class.
        trusted: modules that the run's configuration may name beside this project's.

    Raises:
        ValueError: for a run that is not finished, or taps that the network does not have.
    """
    if not (run / "student.safetensors").is_file():
        raise ValueError(f"{run} is not a finished run: it has no student.safetensors")
    config, runtime = read_found(run / "config.yaml", trusted), Runtime()
    dataset = build_dataset({**config, "data_free": False}, runtime)
    network = student_of(run, trusted)
    dataset.adapt(network.takes, dataset.num_classes)
    runtime.prepare(network)
    taps = paths or stage_taps(network.module)
    if not taps:
        raise ValueError("the network names no stages: give paths of its modules after the run")
    x, labels = _sample(dataset, inputs)
    size = len(dataset.open("train"))
    return {tap: quality(_features(network, tap, x), labels, size) for tap in taps}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.quality",
        description="Measure which layers of a trained network are worth distilling.",
    )
    parser.add_argument("run", type=Path, help="directory of the run that trained the network")
    parser.add_argument(
        "paths",
        nargs="*",
        help="modules; by default the network's stages; and config_path=DIR or trust=[MODULE,...] "
        "for code of yours that RUN may name",
    )
    parser.add_argument("--inputs", type=int, default=5000, help="of the training data, at most")
    given = parser.parse_args(arguments)
    try:
        paths = [word for word in given.paths if "=" not in word]
        trusted = trusted_alone([word for word in given.paths if "=" in word])
        found = quality_of_run(given.run, paths, given.inputs, trusted)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{'layer':<24} {'Q':>8} {'S':>8} {'I':>8} {'E':>8}")
    for name, q in found.items():
        numbers = q.total, q.separation, q.information, q.efficiency
        print(f"{name:<24} " + " ".join(f"{value:8.3f}" for value in numbers))
    return 0


def _compare(x: Tensor, classes: Sequence[Tensor]) -> tuple[float, float, float, float]:
    """Means over classes: c within a class, the smallest there, c between two, the nearest other.

    Args:
        x: [N, D].
        classes: masks [N] of the inputs of each class.
    """
    unit = x / x.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny).unsqueeze(1)
    cosines, distances = (unit @ unit.T).abs(), torch.cdist(x, x)
    within, smallest, between, nearest = [], [], [], []
    for mine in classes:
        block = cosines[mine][:, mine]
        i, j = torch.triu_indices(len(block), len(block), 1)
        within.append(block[i, j].mean())
        smallest.append(block[i, j].min())
        between += [cosines[mine][:, c].mean() for c in classes if c is not mine]
        nearest.append(distances[mine][:, ~mine].min())
    return _mean(within), _mean(smallest), _mean(between), _mean(nearest)


def _sample(dataset: Dataset, inputs: int) -> tuple[Tensor, Tensor]:
    """The first rows of each class, equally many of each if there are enough."""
    train = dataset.open("train")
    each = min(PER_CLASS, inputs // dataset.num_classes)
    rows = [(train.labels == c).nonzero()[:each, 0] for c in range(dataset.num_classes)]
    index = torch.cat(rows)
    return train.batch(index)[0], train.labels[index].to(train.device)


@torch.no_grad()
def _features(network: Classifier, tap: str, x: Tensor) -> Tensor:
    view = network.frozen(taps=[tap])
    return torch.cat([view(part).features[tap] for part in x.split(BATCH)])


def _entropy(x: Tensor) -> float:
    """Of the normalised eigenvalues of the covariance of x [N, D], in nats."""
    centred = (x - x.mean(dim=0)).double()
    gram = centred @ centred.T if len(x) < x.shape[1] else centred.T @ centred
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    p = values / values.sum().clamp_min(sys.float_info.min)
    return float(-torch.special.xlogy(p, p).sum())


def _mean(values: Sequence[Tensor | float]) -> float:
    return sum(map(float, values)) / len(values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
