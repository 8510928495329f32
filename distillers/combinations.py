"""Several answers as one: means, weighted means, and the learned mixture of a gate."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.response import positive
from distillers.step import Ref, Roles, Step, Teacher
from models.classifier import Outputs
from models.features import channels, to_vector


class Combination(Teacher):
    """Base: Σ_k w_k·softmax(t_k/τ) over the answers t_k of its members, as the logits τ·log Σ_k.

    So a loss at the same temperature τ has this mixture for its target. For weights that sum to 1,
    the gradient of τ²·KL(mixture ‖ softmax(s/τ)) is that of Σ_k w_k·τ²·KL(softmax(t_k/τ) ‖
    softmax(s/τ)), the weighted mean of the losses: the two differ by entropies of targets alone.
    At another temperature the target is not such a mixture.

    Weights are constants, also where a gradient passes through the answers.

    Args:
        of: names of the members, each ``NAME`` or ``NAME@VIEW``.
        temperature: τ > 0, of the loss that reads the answer.

    Attributes:
        least: how many members there must be.

    Raises:
        ValueError: for too few members, or a temperature that is not positive.
    """

    least = 1

    def __init__(self, of: Sequence[str], temperature: float = 4.0) -> None:
        super().__init__()
        self.of, self.temperature = checked(of, self.least), positive(temperature)

    def forward(self, step: Step, view: str) -> Outputs:
        logits = answers(self.members(step), step, view)
        with torch.no_grad():
            weights = self.weights(logits, step.batch)
        return Outputs(mixture(logits, weights, self.temperature))

    def members(self, step: Step) -> Sequence[str]:
        """Those of ``of`` that this step asks."""
        return self.of

    def weights(self, logits: Tensor, batch: Batch) -> Tensor:
        """Weights [K] or [B, K] that sum to 1 over the members, of their logits [B, K, C]."""
        raise NotImplementedError


class Mean(Combination):
    """The mean of the members' softened predictions (AVER; DGKD, Son et al., ICCV 2021).

    With the equality of :class:`Combination`, this is the mean of the members' losses, not the loss
    to the mean of their logits.

    DGKD drops members: each step leaves out ``drop`` of them, drawn at random and not asked. Its
    loss is the sum over those that stay, not the mean: give the loss's weight their number as a
    factor. (The authors' code also divides each KL by the number of classes.)

    Args:
        of: names of the members.
        temperature: τ > 0.
        drop: how many members each step leaves out, at least 0; one always stays. The authors' 1.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(self, of: Sequence[str], temperature: float = 4.0, drop: int = 0) -> None:
        super().__init__(of, temperature)
        if drop < 0:
            raise ValueError(f"drop is a number of members, at least 0, but is {drop}")
        self.kept = max(1, len(self.of) - drop)

    def members(self, step: Step) -> Sequence[str]:
        """Drawn on the host, without waiting; in the order of ``of``."""
        if self.kept == len(self.of):
            return self.of
        draw = random.Random(step.noise("guides").initial_seed())
        return [self.of[k] for k in sorted(draw.sample(range(len(self.of)), self.kept))]

    def weights(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.new_full((logits.shape[1],), 1 / logits.shape[1])


class Entropy(Combination):
    """Weights (1 − H_k/Σ_j H_j)/(K − 1), H_k the entropy of softmax(t_k): more to who is surer.

    EBKD (Kwon et al., ICASSP 2020) as CA-MKD's authors compare with it; H is taken at τ = 1. Their
    weights sum to K − 1 and their loss is divided by K, so it is (K − 1)/K of the one here, where
    weights sum to 1. If all entropies are 0, weights are equal.

    Args:
        of: names of at least two members.
        temperature: τ > 0 of the mixture.

    Raises:
        ValueError: for an argument out of range.
    """

    least = 2

    def weights(self, logits: Tensor, batch: Batch) -> Tensor:
        log_p = F.log_softmax(logits, dim=2)
        entropy = -(log_p.exp() * log_p).sum(dim=2)
        entropy = entropy.clamp_min(torch.finfo(entropy.dtype).tiny)
        return others_share(entropy / entropy.sum(dim=1, keepdim=True))


class Confidence(Combination):
    """Weights (1 − softmax_k(c_k))/(K − 1), c_k = CE(t_k, label): more to who is right.

    CA-MKD (Zhang, Chen and Wang, ICASSP 2022), the weights of its loss on logits, for each input.
    The authors' code divides the loss by K too: their weight of 1 is a weight of 1/K here. Where a
    batch has no labels, they are the first teacher's own predictions, which tell little about who
    is right.

    Args:
        of: names of at least two members.
        temperature: τ > 0 of the mixture.

    Raises:
        ValueError: for an argument out of range.
    """

    least = 2
    needs_label = True

    def weights(self, logits: Tensor, batch: Batch) -> Tensor:
        assert batch.label is not None
        index = batch.label[:, None, None].expand(-1, logits.shape[1], 1)
        wrong = -F.log_softmax(logits, dim=2).gather(2, index).squeeze(2)
        return others_share(wrong.softmax(dim=1))


class Gate(Teacher):
    """Σ_k g_k·t_k, a mixture of logits with g = softmax(ReLU(BatchNorm(Linear(pooled feature)))).

    ONE (Lan, Zhu and Gong, NeurIPS 2018): the members are branches, and the feature is
    that of their trunk. As a loss's ``teacher`` the answer is detached, so a loss with this as its
    ``student`` must train it: the authors' is cross-entropy.

    Args:
        of: names of at least two members.
        network: the name of the network whose feature it reads.
        tap: there, a name or module path; maps and tokens are averaged over places.

    Attributes:
        gate: [B, D] to [B, K] before the softmax; made in :meth:`prepare`.

    Raises:
        ValueError: for fewer members.
    """

    gate: nn.Sequential

    def __init__(self, of: Sequence[str], network: str, tap: str) -> None:
        super().__init__()
        self.members, self.trunk, self.tap = checked(of, 2), Ref.parse(network), tap
        self.of = tuple(dict.fromkeys([*self.members, network]))
        self.taps: Mapping[str, Sequence[str]] = {self.trunk.name: (tap,)}

    def prepare(self, roles: Roles) -> None:
        """One pass over two inputs of noise in eval mode, which changes no network.

        Raises:
            ValueError: for a network that has no features.
        """
        if self.trunk.name in (*roles.branches, *roles.teachers):
            raise ValueError(
                f"a gate reads features, but {self.trunk.name} gives only logits: let network=NAME "
                "be a network, in place of a branch its trunk"
            )
        network = roles.network(self.trunk.name)
        mode = network.training
        with torch.no_grad(), network.uncounted():
            outputs = network.eval()(network.takes.noise(2, roles.runtime.device))
        network.train(mode)
        count = len(self.members)
        width = channels(outputs.features[self.tap])
        self.gate = nn.Sequential(nn.Linear(width, count), nn.BatchNorm1d(count), nn.ReLU())
        roles.runtime.prepare(self.gate)

    def forward(self, step: Step, view: str) -> Outputs:
        trunk = self.trunk.seen_at(view)
        feature = step.answer(trunk.name, trunk.view).features[self.tap]
        weights = self.gate(to_vector(feature)).softmax(dim=1)
        logits = answers(self.members, step, view)
        return Outputs((weights[:, :, None] * logits).sum(dim=1))


def answers(names: Sequence[str], step: Step, view: str) -> Tensor:
    """The logits [B, K, C] of K names at a view, or at the view that a name has of its own."""
    refs = [Ref.parse(name).seen_at(view) for name in names]
    return torch.stack([step.answer(ref.name, ref.view).logits for ref in refs], dim=1)


def mixture(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """τ·log Σ_k w_k·softmax(t_k/τ), [B, C].

    It stays in log space, where no probability underflows. A weight may be 0.

    Args:
        logits: t, [B, K, C].
        weights: [K] or [B, K], at least 0, with a positive sum.
        temperature: τ > 0.
    """
    log_p = F.log_softmax(logits / temperature, dim=2)
    return temperature * (log_p + weights.log()[..., None]).logsumexp(dim=1)


def others_share(shares: Tensor) -> Tensor:
    """(1 − share)/(K − 1) of shares [B, K] that sum to 1; these sum to 1 again."""
    return (1 - shares) / (shares.shape[1] - 1)


def checked(of: Sequence[str], least: int) -> tuple[str, ...]:
    """The members' names.

    Raises:
        ValueError: for fewer than ``least``, or one named twice.
    """
    if isinstance(of, str) or len(of) < least:
        raise ValueError(f"of=[NAME, ...] lists at least {least} of those to combine, not {of!r}")
    if len(set(of)) < len(of):
        raise ValueError(f"of names one twice: {', '.join(of)}")
    return tuple(of)
