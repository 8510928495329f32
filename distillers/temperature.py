"""Response losses whose temperature is learned, or set for each input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from core.functional import kl_divergences
from data.spec import Batch
from distillers.adversarial import reversed_gradient
from distillers.base import TransferLoss
from models.classifier import Outputs


class CTKD(TransferLoss):
    """mean τ²·KL(softmax(t/τ) ‖ softmax(s/τ)), τ = base + span·σ(h): the student minimises it,
    the temperature maximises it (Li et al., Curriculum Temperature, AAAI 2023).

    One optimizer step does both: the gradient of h is multiplied by −λ, a gradient reversal. The
    task gets harder as λ rises along half a cosine, 0 to 1, over the first ``curriculum`` of the
    run, and stays at 1: the paper's E_loops is 10 of 240 epochs.

    Args:
        temperature: gives h, of :class:`GlobalTemperature` or :class:`InstanceTemperature`.
        base: the smallest temperature, above 0; the paper's τ_init.
        span: how far above it can lie, above 0; the paper's τ_range.
        curriculum: fraction of the run, in (0, 1].

    Attributes:
        reversal: λ in [0, 1].

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        temperature: nn.Module,
        base: float = 1.0,
        span: float = 20.0,
        curriculum: float = 10 / 240,
    ) -> None:
        super().__init__()
        if min(base, span) <= 0:
            raise ValueError(f"base and span must be above 0, but are {base} and {span}")
        if not 0 < curriculum <= 1:
            raise ValueError(f"curriculum is a fraction of the run in (0, 1], but is {curriculum}")
        self.temperature = temperature
        self.base, self.span, self.curriculum = float(base), float(span), float(curriculum)
        self.reversal = 0.0

    def at(self, progress: float) -> None:
        self.reversal = (1 - math.cos(math.pi * min(progress / self.curriculum, 1.0))) / 2

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        h = self.temperature(student.logits.detach(), teacher.logits)
        h = reversed_gradient(h, self.reversal)
        tau = self.base + self.span * h.sigmoid()
        kl = kl_divergences(student.logits / tau, teacher.logits / tau)
        return (tau.square() * kl[:, None]).mean()


class GlobalTemperature(nn.Module):
    """CTKD's Global-T: one number for all inputs, [1, 1]; 1 at first, as in the authors' code."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1, 1))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.value


class InstanceTemperature(nn.Module):
    """CTKD's Instance-T: a number for each input, [B, 1], 0 at first.

    Two layers on both networks' probabilities, sorted by the teacher's, so that not the class
    counts but how sure the two are. The authors' code has a BatchNorm between the layers, which
    fails on a batch of one input; here there is none.

    Args:
        num_classes: C of the logits [B, C].
        hidden: units between the layers.
    """

    def __init__(self, num_classes: int, hidden: int = 256) -> None:
        super().__init__()
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(2 * num_classes, hidden), nn.ReLU(), last)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        order = teacher.argsort(dim=1, descending=True)
        both = [x.softmax(dim=1).gather(1, order) for x in (teacher, student)]
        return self.layers(torch.cat(both, dim=1))  # type: ignore[no-any-return]


class ATKD(TransferLoss):
    """mean τ_s·τ_t·KL(softmax(t/τ_t) ‖ softmax(s/τ_s)), τ = std(logits) / multiplier per input.

    After J. Guo, Reducing the Teacher-Student Gap via Adaptive Temperatures (ATKD, OpenReview
    2022), which calls log Σ exp(z/τ) the sharpness of logits z of mean 0. To second order that is
    log C + std(z)²/2τ², so these temperatures make teacher and student equally sharp on every
    input, with a spread of ``multiplier``. They are constants to the gradient, like other
    temperatures, while :class:`distillers.response.StandardizedKD` differentiates the student's
    spread.

    The paper was not published with code. The biased std and the multiplier are those of its
    author's earlier code (Spherical KD, 2020: 2 to 3); the factor τ_s·τ_t is KD's τ² where both
    are one, and keeps the gradient from vanishing with the student's spread.

    Args:
        multiplier: standard deviation of the logits over their temperature, above 0.

    Raises:
        ValueError: for a multiplier of 0 or less.
    """

    def __init__(self, multiplier: float = 2.0) -> None:
        super().__init__()
        if multiplier <= 0:
            raise ValueError(f"multiplier must be above 0, but is {multiplier}")
        self.multiplier = float(multiplier)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        tau_s, tau_t = self._temperature(student.logits), self._temperature(teacher.logits)
        kl = kl_divergences(student.logits / tau_s, teacher.logits / tau_t)
        return (tau_s * tau_t * kl[:, None]).mean()

    def _temperature(self, logits: Tensor) -> Tensor:
        """[B, 1]; above 0 where all logits are alike."""
        return logits.detach().std(dim=1, correction=0, keepdim=True) / self.multiplier + 1e-7
