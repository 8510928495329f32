"""Targets that are not one class: the teacher's softmax as a Dirichlet variable (ZSKD)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.augment import seeded
from generators.base import Synthesis, SynthesisLoss
from models.classifier import Classifier


class DirichletTargets:
    """Softmax targets y ~ Dir(β·α_k) for class k (ZSKD, ICML 2019, eq. 4 and 5).

    α_k is row k of the classes' similarity: the cosine between the weights of the teacher's last
    linear layer, scaled to [0, 1] in each row. Half of the targets, in turn, take each of
    ``scales``: a small β gives targets near one class, β = 1 spreads them over similar classes.

    Args:
        teacher: whose last linear layer is read.
        num_classes: how many outputs that layer has.
        scales: the values of β.

    Raises:
        ValueError: for a teacher without such a layer, and scales that are not positive.
    """

    def __init__(
        self, teacher: Classifier, num_classes: int, scales: tuple[float, ...] = (1.0, 0.1)
    ) -> None:
        if not scales or min(scales) <= 0:
            raise ValueError(f"the scales of Dirichlet targets must be above 0, not {list(scales)}")
        linear = [m for m in teacher.modules() if isinstance(m, nn.Linear)]
        layers = [m for m in linear if m.out_features == num_classes]
        if not layers:
            raise ValueError(
                f"the teacher {type(teacher.module).__name__} has no linear layer with "
                f"{num_classes} outputs, whose weights this method reads: use another method"
            )
        self.concentration = class_similarity(layers[-1].weight.detach())
        self.scales = torch.tensor(scales, device=self.concentration.device)

    def __call__(self, label: Tensor, noise: torch.Generator) -> Tensor:
        """Targets [B, C], rows that sum to 1, for the classes [B]."""
        scale = self.scales.repeat(-(-len(label) // len(self.scales)))
        concentration = self.concentration[label] * scale[: len(label), None]
        with seeded(noise, label.device):
            # without checks of the arguments, each of which makes the host wait for the device
            return torch.distributions.Dirichlet(concentration, validate_args=False).sample()


def class_similarity(weight: Tensor, least: float = 1e-3) -> Tensor:
    """Cosines between the rows of [C, D], scaled to [least, 1] in each row: [C, C]."""
    unit = F.normalize(weight.float(), dim=1)
    cosine = unit @ unit.T
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    return ((cosine - low) / (high - low)).clamp(min=least)  # a Dirichlet takes no zero


class SoftTarget(SynthesisLoss):
    """CE(y, softmax(t / τ)) with the soft target y of each input (ZSKD, ICML 2019, eq. 6).

    Args:
        temperature: τ > 0; the paper takes 20.

    Raises:
        ValueError: for a temperature that is not positive, or a source without soft targets.
    """

    def __init__(self, temperature: float = 20.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, but is {temperature}")
        self.temperature = temperature

    def forward(self, synthesis: Synthesis) -> Tensor:
        if synthesis.target is None:
            raise ValueError("SoftTarget needs soft targets: name synthesizer.targets")
        return F.cross_entropy(synthesis.teacher.logits / self.temperature, synthesis.target)
