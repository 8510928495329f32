"""What of a teacher's features another modality can know too: MFH's choice of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime import Runtime
from distillers.base import side
from distillers.step import Roles, Step, Teacher
from models.classifier import Outputs

TAP = "pooled"  # what the last linear layer reads


class GeneralChannels(Teacher):
    """A teacher's logits from the channels of its last feature that are general to both modalities.

    Modality focusing hypothesis (Xue et al., ICLR 2023, algorithm 1). A channel's salience is
    E|z_T − z_S|, the mean distance between the teacher's logits and the student's, where that
    channel is permuted among the inputs of a batch, ``permutations`` times. Permuting a channel
    that tells both the same moves the teacher's predictions away from the student's. The channels
    of highest salience stay, and the others are set to 0 before the teacher's linear layer.

    The salience is measured in every step of the first part of the run, in which z_S is that of a
    network that learns from labels; the paper has networks that were trained before. Its change is
    the same for every other teacher, since the linear layer makes it exact: permuting f_k moves the
    logits by W_k·(f_k′ − f_k). In the authors' code for VGGSound the choice compares a channel's
    number, and not its rank, with the threshold, so that which channels stay depends on their order
    alone.

    Args:
        runtime: sums over ranks.
        of: the teacher's name.
        student: the name of the network of the other modality.
        keep: share of the channels that stay, in (0, 1]; the authors' 0.25 and 0.5.
        until: share of the run in which the salience is measured, in (0, 1].
        permutations: of each channel in a step, at least 1; the authors' 10 to 100 in all.

    Attributes:
        salience: [D], summed over the steps; a part of the state.

    Raises:
        ValueError: for an argument out of range, and for a teacher that does not end in a linear
            layer on a vector.
    """

    needs_instance = True
    salience: Tensor
    head: nn.Linear

    def __init__(
        self,
        runtime: Runtime,
        of: str = "teacher",
        student: str = "student",
        keep: float = 0.25,
        until: float = 0.5,
        permutations: int = 10,
    ) -> None:
        super().__init__()
        if not (0 < keep <= 1 and 0 < until <= 1) or permutations < 1:
            raise ValueError(
                "keep and until lie in (0, 1] and permutations is at least 1, but they are "
                f"{keep}, {until} and {permutations}"
            )
        self.runtime, self.of, self.name = runtime, (of, student), of
        self.keep, self.until, self.permutations = keep, until, permutations
        self.taps = {of: (TAP,)}

    @torch.no_grad()
    def prepare(self, roles: Roles) -> None:
        network = roles.network(self.name)
        with network.uncounted():
            outputs = network(network.takes.noise(2, self.runtime.device))
        head, feature = side(network, outputs).head, outputs.features[TAP]
        if head is None or tuple(feature.shape[1:]) != (head.in_features,):
            raise ValueError(
                f"GeneralChannels needs a teacher that ends in a linear layer on its {TAP} "
                f"feature, but {self.name} does not: choose another teacher"
            )
        self.count = max(1, round(self.keep * head.in_features))
        salience = torch.zeros(head.in_features, device=self.runtime.device)
        self.register_buffer("salience", salience)
        object.__setattr__(self, "head", head)  # the teacher's: no parameter of this

    def forward(self, step: Step, view: str) -> Outputs:
        feature = step.answer(self.name, view).features[TAP]
        chosen = self.salience.topk(self.count).indices
        kept = torch.zeros_like(self.salience).index_fill(0, chosen, 1.0)
        return Outputs(F.linear(feature * kept, self.head.weight, self.head.bias))

    @torch.no_grad()
    def record(self, step: Step) -> None:
        if step.progress >= self.until:
            return
        asked = [ref for ref in step.answers if ref.name == self.name]
        teacher = step.answers[asked[0]] if asked else step.answer(self.name)
        student = step.answer(self.of[1]).logits
        distance = self._distances(teacher.features[TAP], teacher.logits, student, step)
        self.salience += self.runtime.sum(distance) / self.runtime.world_size

    def _distances(self, feature: Tensor, logits: Tensor, student: Tensor, step: Step) -> Tensor:
        """The mean distance [D] between the logits of the two with each channel permuted."""
        noise, total = step.noise(self.name + " channels"), torch.zeros_like(self.salience)
        gap = (logits - student)[:, None]
        for _ in range(self.permutations):
            order = torch.rand(len(feature), generator=noise, device=noise.device).argsort()
            change = (feature[order] - feature)[:, :, None] * self.head.weight.T
            total += (gap + change).abs().mean((0, 2))
        return total / self.permutations
