"""Synthesis losses: what makes an input worth learning from, by teacher and student.

Written for logits t (teacher) and s (student) [B, C], p = softmax, and features f. Everything is
computed in log space, so that values and gradients stay finite at logit gaps of 500.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from core.functional import kl_divergences
from data.spec import InputSpec
from generators.base import Synthesis, SynthesisLoss


class BatchNormStatistics(SynthesisLoss):
    """Σ_l ‖μ̂_l − μ_l‖₂ + ‖σ̂²_l − σ²_l‖₂ (R_feature of DeepInversion, CVPR 2020).

    The batch's mean and biased variance at each BatchNorm layer of the teacher are drawn to the
    running ones, which are all that is left of the training data. With a momentum m, it is
    (1 − m) μ̂ + m μ̄ that is drawn to μ, where μ̄ is the moving average over earlier batches, and
    the variance likewise (FastDFKD, AAAI 2022): not every batch has to hold all there is.

    With ``kl`` it is Σ_l Σ_c KL(N(μ̂, σ̂²) ‖ N(μ, σ²)) over channels c, as in the paper of DFQ (Choi
    et al., CVPRW 2020): (σ̂² + (μ̂ − μ)²)/2σ² − ½ − log(σ̂/σ), which does not depend on a layer's
    scale. Fast-Datafree, whose DFQ most figures are of, has the norms. Both variances include 1e-5,
    as a BatchNorm's own do, for channels that are always 0.

    Args:
        first_layer_weight: of the layer nearest to the input (the authors' ImageNet code: 10).
        momentum: m, in [0, 1).
        distance: "l2" or "kl".

    Raises:
        ValueError: for a momentum outside of [0, 1) or an unknown distance.
    """

    needs_statistics = True

    def __init__(
        self, first_layer_weight: float = 1.0, momentum: float = 0.0, distance: str = "l2"
    ) -> None:
        super().__init__()
        if distance not in MOMENT_DISTANCES:
            known = ", ".join(MOMENT_DISTANCES)
            raise ValueError(f"distance {distance!r} is none of: {known}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), but is {momentum}")
        self.first_layer_weight = first_layer_weight
        self.momentum = momentum
        self.distance = MOMENT_DISTANCES[distance]
        self.earlier: list[Tensor] = []  # mean and variance of each layer in turn

    def forward(self, synthesis: Synthesis) -> Tensor:
        layers = synthesis.teacher.statistics
        known = [x for layer in layers for x in (layer.running_mean, layer.running_variance)]
        terms, first = self.distance(self._moving(synthesis), known)
        return torch.cat([self.first_layer_weight * terms[:first], terms[first:]]).sum()

    def commit(self, synthesis: Synthesis) -> None:
        if self.momentum:
            self.earlier = self._moving(synthesis)

    def get_extra_state(self) -> list[Tensor]:
        return self.earlier

    def set_extra_state(self, state: list[Tensor]) -> None:
        self.earlier = state

    def _moving(self, synthesis: Synthesis) -> list[Tensor]:
        """(1 − m) μ̂ + m μ̄, and the variance likewise, of each layer in turn."""
        now = [x for layer in synthesis.teacher.statistics for x in (layer.mean, layer.variance)]
        if not self.earlier:
            return now
        if self.earlier[0].device != now[0].device:  # from a checkpoint: one copy, not each time
            self.earlier = [x.to(now[0]) for x in self.earlier]
        return list(torch._foreach_lerp(now, self.earlier, self.momentum))


class _Norms(torch.autograd.Function):
    """‖x‖₂ of each of n tensors: [n]. The gradient is x/‖x‖, and 0 at 0.

    Autograd's own takes four launches a tensor, and this takes one.
    """

    @staticmethod
    def forward(*tensors: Tensor) -> Tensor:
        return torch.stack(torch._foreach_norm(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, *inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        norms, *tensors = ctx.saved_tensors
        factors = (gradient / norms).masked_fill(norms == 0, 0)
        return torch._foreach_mul(tensors, factors.unbind())


def _l2(found: list[Tensor], known: list[Tensor]) -> tuple[Tensor, int]:
    """The norms of means and variances in turn, and how many are of the first layer."""
    return _Norms.apply(*torch._foreach_sub(found, known)), 2


def _kl(found: list[Tensor], known: list[Tensor]) -> tuple[Tensor, int]:
    """The divergence of each channel, and how many are of the first layer."""
    gap = torch.cat(found[::2]) - torch.cat(known[::2])
    variance, expected = torch.cat(found[1::2]) + 1e-5, torch.cat(known[1::2]) + 1e-5
    ratio = variance / expected
    return (ratio + gap.square() / expected - 1 - ratio.log()) / 2, len(found[0])


MOMENT_DISTANCES = {"l2": _l2, "kl": _kl}


class OneHot(SynthesisLoss):
    """CE(t, y), with y = argmax t where no class was aimed at (L_oh of DAFL, ICCV 2019)."""

    def forward(self, synthesis: Synthesis) -> Tensor:
        logits = synthesis.teacher.logits
        label = logits.argmax(1) if synthesis.label is None else synthesis.label
        return F.cross_entropy(logits, label)


class InformationEntropy(SynthesisLoss):
    """Σ_c p̄_c log p̄_c of the batch mean p̄ of the teacher's p (L_ie of DAFL, ICCV 2019).

    Between −log C, where the classes are in balance, and 0, where there is but one. Natural
    logarithm; DAFL's MNIST code uses the decimal one, which is a weight of 1 / log 10.
    """

    def forward(self, synthesis: Synthesis) -> Tensor:
        log_p = F.log_softmax(synthesis.teacher.logits, dim=1)
        log_mean = log_p.logsumexp(0) - math.log(len(log_p))
        return (log_mean.exp() * log_mean).sum()


class Activation(SynthesisLoss):
    """−mean |f|: real inputs excite a teacher's features (L_a of DAFL, ICCV 2019).

    Args:
        tap: of the teacher, whose output is f; the features before the last layer in the paper.
    """

    def __init__(self, tap: str = "pooled") -> None:
        super().__init__()
        self.tap = tap
        self.teacher_taps = (tap,)

    def forward(self, synthesis: Synthesis) -> Tensor:
        return -synthesis.teacher.features[self.tap].abs().mean()


class Adversarial(SynthesisLoss):
    """−D(s, t), batch mean: inputs on which the student is still wrong.

    ``kl`` is KL(p_t ‖ p_s) (ZSKT, NeurIPS 2019; DFQ, CVPRW 2020), ``l1`` the mean |t − s| of the
    logits (DFAD, 2019), and ``js`` the Jensen-Shannon divergence (R_compete of ADI, CVPR 2020,
    is 1 − JS, which differs by a constant). No factor of temperature² is applied.

    Args:
        distance: "kl", "l1" or "js".
        temperature: that divides all logits first (ADI: 3).
        mask_disagreement: leave out inputs that the two already classify differently
            (CMI, IJCAI 2021; FastDFKD; NAYER). The mean is still over the whole batch.

    Raises:
        ValueError: for an unknown distance.
    """

    needs_student = True

    def __init__(
        self, distance: str = "kl", temperature: float = 1.0, mask_disagreement: bool = False
    ) -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance {distance!r} is none of: {', '.join(DISTANCES)}")
        self.distance = DISTANCES[distance]
        self.temperature = temperature
        self.mask_disagreement = mask_disagreement

    def forward(self, synthesis: Synthesis) -> Tensor:
        assert synthesis.student is not None
        student, teacher = synthesis.student.logits, synthesis.teacher.logits
        distance = self.distance(student / self.temperature, teacher / self.temperature)
        if self.mask_disagreement:
            distance = distance * (student.argmax(1) == teacher.argmax(1))
        return -distance.mean()


def _l1(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher - student).abs().mean(1)


def _js(student: Tensor, teacher: Tensor) -> Tensor:
    log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return 0.5 * (log_s.exp() * (log_s - log_m) + log_t.exp() * (log_t - log_m)).sum(1)


DISTANCES = {"kl": kl_divergences, "l1": _l1, "js": _js}


class TotalVariation(SynthesisLoss):
    """Σ_d ‖x − shift_d(x)‖ of normalised inputs (R_TV of DeepInversion, CVPR 2020).

    As in the authors' code, d are the steps to the right, down and along both diagonals of an
    image; of a signal, the step in time is all there is, and of inputs with more axes, the step
    along each. Vectors have no neighbours, and those of a word need not be like it. ``l2`` is the
    Frobenius norm over the whole batch, and so grows with the square root of its size; ``l1`` is
    the mean absolute difference, which does not.

    Args:
        spec: of the inputs.
        norm: "l2" or "l1".

    Raises:
        ValueError: for an unknown norm.
    """

    def __init__(self, spec: InputSpec, norm: str = "l2") -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm {norm!r} is none of: l1, l2")
        self.applies = not spec.kind.discrete and max(spec.shape[1:], default=1) > 1
        if not self.applies:
            shape = list(spec.shape)
            self.note = (
                f"{spec.kind.plural} {shape} have no neighbours that are alike: TotalVariation is 0"
            )
        self.spec = spec
        self.norm = norm

    def forward(self, synthesis: Synthesis) -> Tensor:
        x = self.spec.normalize(synthesis.images)
        axes = range(x.dim() - 1, 1, -1) if self.applies else ()
        differences = [x.diff(dim=axis) for axis in axes]
        if self.applies and x.dim() == 4:
            differences += [
                x[..., 1:, 1:] - x[..., :-1, :-1],
                x[..., 1:, :-1] - x[..., :-1, 1:],
            ]
        differences = [d for d in differences if d.numel()]  # one row has none above another
        if not differences:
            return 0 * x.sum()
        if self.norm == "l1":
            return torch.stack([d.abs().mean() for d in differences]).sum()
        return torch.stack([vector_norm(d) for d in differences]).sum()


class L2(SynthesisLoss):
    """Mean over the batch of ‖x‖₂ of normalised images (R_l2 of DeepInversion, CVPR 2020).

    Args:
        spec: of the images.
    """

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, synthesis: Synthesis) -> Tensor:
        x = self.spec.normalize(synthesis.images)
        return vector_norm(x.flatten(1), dim=1).mean()
