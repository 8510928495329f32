"""C²KD's loss between two modalities, on inputs whose classes both rank alike."""

from __future__ import annotations

import torch
from torch import Tensor

from core.functional import kl_divergences
from data.spec import Batch
from distillers.base import TransferLoss
from models.classifier import Outputs

BLOCK = 64  # classes that are compared with all others at once, which bounds the memory


class NonTargetKL(TransferLoss):
    """KL(softmax(t∖y) ‖ softmax(s∖y)), batch mean, of inputs with Kendall's τ(s, t) > ``least``.

    C²KD (Huo et al., CVPR 2024): z∖y is z with the logit of the label set to 0 (the authors
    multiply it by 0, and do not leave the class out), and inputs whose classes the two rank in
    different orders count as 0, so that networks which disagree learn less from each other. τ is
    :func:`kendall`, without gradient.

    Args:
        least: in [−1, 1); the authors' 0.

    Raises:
        ValueError: for a value out of range.
    """

    needs_label = True

    def __init__(self, least: float = 0.0) -> None:
        super().__init__()
        if not -1 <= least < 1:
            raise ValueError(f"least should lie in [-1, 1), but is {least}")
        self.least = float(least)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert batch.label is not None
        s, t = student.logits, teacher.logits
        kept = (kendall(s.detach(), t.detach()) > self.least).to(s.dtype)
        others = torch.ones_like(s).scatter(1, batch.label[:, None], 0.0)
        return (kept * kl_divergences(s * others, t * others)).mean()


def kendall(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's τ_b between two rankings of the classes, [B], of scores [B, C].

    (P − Q)/√((n − T_a)(n − T_b)) with P pairs of classes in the same order, Q in opposite orders, T
    ties, n = C(C − 1)/2 (Kendall 1945); 0 where all scores are equal. τ_a, which divides by n, has
    the same sign. C² comparisons of signs on the device take the place of sorting on the host.
    """
    both = in_a = in_b = torch.zeros(len(a), device=a.device)
    for start in range(0, a.shape[1], BLOCK):
        signs = [(x[:, start : start + BLOCK, None] - x[:, None]).sign() for x in (a, b)]
        both = both + (signs[0] * signs[1]).sum((1, 2))
        in_a, in_b = (n + s.square().sum((1, 2)) for n, s in zip((in_a, in_b), signs, strict=True))
    # every pair was counted twice, which cancels
    return both / (in_a.sqrt() * in_b.sqrt()).clamp_min(1)
