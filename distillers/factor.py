"""Factor transfer: a paraphraser of the teacher's features, a translator of the student's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from distillers.channel import check_places
from distillers.connector import maps
from models.classifier import Outputs
from models.initialization import initialize


def factor_distance(student: Tensor, teacher: Tensor, p1: float = 2, p2: float = 1) -> Tensor:
    """mean |Q_s − Q_t|^p2 with Q ∝ mean_c |F_c|^p1 of unit L2 norm per input (Kim et al., eq. 5).

    The paper normalises factors as they are; the mean over channels comes from the field's code, to
    which the usual weight of 200 belongs, and lets factors differ in channels.

    Args:
        student: factors [B, C, H, W], or [B, C, N].
        teacher: factors of the same height and width.
        p1: exponent of the activations, at least 1.
        p2: exponent of the differences, at least 1.
    """
    s, t = (F.normalize(x.abs().pow(p1).mean(dim=1).flatten(1), dim=1) for x in (student, teacher))
    return (s - t).abs().pow(p2).mean()


class FactorTransfer(TransferLoss):
    """Σ_taps distance of factors + ``reconstruction``·‖F_t − D(E(F_t))‖²/‖F_t‖².

    FT (Kim, Park and Kwak, NeurIPS 2018). A paraphraser, the auto-encoder D∘E, learns to
    reconstruct the teacher's features; its code E(F_t) are the teacher's factors. A translator
    turns the student's features into factors like them (:func:`factor_distance`).

    The paper trains the paraphraser first, on the training set. Here it learns within the run, from
    whatever inputs the source makes: alone for the first part, then beside the student, since
    synthesized inputs change while the generator learns. Its factors are detached, so it minimises
    its reconstruction and nothing else. That error is relative to the features' energy, and has a
    weight of its own because the distance needs a large one: weight·``reconstruction`` should be
    about 1.

    Args:
        taps: maps [B, C, H, W] or tokens; the larger map is average-pooled to the smaller.
        rate: the paper's k: factors per channel of the teacher.
        reconstruction: weight of the reconstruction beside the distance.
        pretraining: fraction of the run in which the paraphraser learns alone, in [0, 1).

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        taps: Taps = ("stage-1",),
        rate: float = 0.5,
        reconstruction: float = 0.005,
        pretraining: float = 0.125,
    ) -> None:
        super().__init__(taps)
        if rate <= 0 or reconstruction <= 0:
            raise ValueError(
                "factor transfer needs rate and reconstruction above 0, but has "
                f"{rate} and {reconstruction}"
            )
        if not 0 <= pretraining < 1:
            raise ValueError(f"pretraining is a fraction in [0, 1), but is {pretraining}")
        self.rate, self.reconstruction, self.pretraining = rate, reconstruction, pretraining
        self.transfers = True
        self.paraphrasers = nn.ModuleList()
        self.translators = nn.ModuleList()

    def prepare(self, student: Side, teacher: Side) -> None:
        for s, t in self.pairs(student.outputs, teacher.outputs):
            s, t = maps(s, t)
            check_places(s, "FT")
            factors = max(1, round(self.rate * t.shape[1]))
            self.paraphrasers.append(Paraphraser(t.shape[1], factors))
            self.translators.append(_encoder(s.shape[1], factors))

    def at(self, progress: float) -> None:
        """Whether factors are transferred yet, from the run's progress in [0, 1]."""
        self.transfers = progress >= self.pretraining

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        modules = zip(self.paraphrasers, self.translators, strict=True)
        losses = []
        for (paraphraser, translator), (s, t) in zip(
            modules, self.pairs(student, teacher), strict=True
        ):
            s, t = maps(s, t)
            factors, reconstruction = paraphraser(t)
            distance = factor_distance(translator(s), factors.detach())
            # times 0 rather than left out: DDP waits for the translator's gradients
            losses.append(distance * float(self.transfers) + self.reconstruction * reconstruction)
        return torch.stack(losses).sum()


class Paraphraser(nn.Module):
    """A convolutional auto-encoder: three 3×3 convolutions to the factors, and three back.

    The paper's transposed convolutions have stride 1, which makes them convolutions.

    Args:
        features: channels of what is paraphrased.
        factors: channels of the code.
    """

    def __init__(self, features: int, factors: int) -> None:
        super().__init__()
        self.encoder = _encoder(features, factors)
        self.decoder = nn.Sequential(
            *_layer(factors, factors),
            *_layer(factors, features),
            nn.Conv2d(features, features, 3, padding=1),
        )
        initialize(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factors [B, factors, H, W] of maps, and the share of the energy that is lost."""
        factors = self.encoder(x)
        energy = x.square().mean().clamp_min(torch.finfo(x.dtype).eps)
        return factors, F.mse_loss(self.decoder(factors), x) / energy


def _encoder(features: int, factors: int) -> nn.Sequential:
    """The paraphraser's first half, and the whole of a translator."""
    encoder = nn.Sequential(
        *_layer(features, features), *_layer(features, factors), *_layer(factors, factors)
    )
    initialize(encoder)
    return encoder


def _layer(c_in: int, c_out: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(c_in, c_out, 3, padding=1), nn.LeakyReLU(0.1)
