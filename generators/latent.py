"""Synthesis losses on the latent that a generator makes its inputs from."""

from __future__ import annotations

from itertools import pairwise
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from data.spec import InputSpec
from generators.base import Synthesis, SynthesisLoss


def latent_of(synthesis: Synthesis) -> Tensor:
    """The latent [B, latent_size].

    Raises:
        ValueError: if inputs are not made by a generator.
    """
    if synthesis.latent is None:
        raise ValueError(
            "a loss reads the latent, but these inputs have none: use a source with a generator"
        )
    return synthesis.latent


class LatentReconstruction(SynthesisLoss):
    """MSE(D(x), z): a decoder D recovers the latent of each input (KegNet, NeurIPS 2019).

    Generator and decoder both minimise it, so that inputs keep what tells them apart. D is an MLP
    with ELU and BatchNorm on the normalised input, as in the paper; it belongs to this loss, and
    the source trains it. An ensemble's members share one, where the paper trains one each.

    Args:
        spec: of the inputs.
        latent_size: of z, as the generator has it.
        layers: number of hidden layers; the authors' code has 2 for MNIST, 4 for SVHN.
        units: in each of them.

    Raises:
        ValueError: when called, for latents of another size.
    """

    def __init__(
        self, spec: InputSpec, latent_size: int = 100, layers: int = 2, units: int = 120
    ) -> None:
        super().__init__()
        self.spec = spec
        sizes = [prod(spec.shape), *[units] * layers]
        hidden: list[nn.Module] = []
        for before, after in pairwise(sizes):
            hidden += [nn.Linear(before, after), nn.ELU(), nn.BatchNorm1d(after)]
        self.decoder = nn.Sequential(*hidden, nn.Linear(sizes[-1], latent_size))

    def forward(self, synthesis: Synthesis) -> Tensor:
        recovered = self.decoder(self.spec.normalize(synthesis.images).flatten(1))
        z = latent_of(synthesis).detach()
        if z.shape != recovered.shape:
            raise ValueError(
                f"the latent has {z.shape[1]} numbers, and LatentReconstruction recovers "
                f"{recovered.shape[1]}: give it latent_size: {z.shape[1]}"
            )
        return F.mse_loss(recovered, z)


class LatentDiversity(SynthesisLoss):
    """exp(−mean over pairs of d(z_i, z_j)·d(x_i, x_j)): the diversity of KegNet, NeurIPS 2019.

    Between 0 and 1. Inputs from latents that lie far apart are to lie apart as well. d is the
    mean squared difference for the latent and the mean absolute one for inputs, normalised; the
    mean is over all B² pairs, as in the authors' code.

    Args:
        spec: of the inputs.
    """

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, synthesis: Synthesis) -> Tensor:
        z = latent_of(synthesis).detach()
        x = self.spec.normalize(synthesis.images).flatten(1)
        apart = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / z.shape[1]
        return (-(apart * torch.cdist(x, x, p=1) / x.shape[1]).mean()).exp()


class LatentNorm(SynthesisLoss):
    """mean of max(‖z‖₂ / √d − radius, 0)²: bounds what a generator's class embeddings add to z.

    After the norm regulariser of MAD (NeurIPS 2022), though the form is this code's own; for
    generators that add an embedding to the noise (``conditioning: add``). An embedding that grows
    without bound drowns the noise, and every image of a class is the same. Noise alone has
    ‖z‖₂ / √d ≈ 1; with an embedding as long as the noise it is √2, the default radius.

    Args:
        radius: of the ball in which a latent is free to move, in units of √d.
    """

    def __init__(self, radius: float = sqrt(2)) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, synthesis: Synthesis) -> Tensor:
        z = latent_of(synthesis)
        excess = vector_norm(z, dim=1) / sqrt(z.shape[1]) - self.radius
        return (excess.relu() ** 2).mean()
