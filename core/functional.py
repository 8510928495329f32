"""Losses on tensors that synthesis and distillation share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(t) ‖ softmax(s)) of each input, [B], of logits [B, C].

    Both sides stay in log space: log(softmax(x)) is infinite at a logit gap of 500.
    """
    log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return (log_t.exp() * (log_t - log_s)).sum(1)


def supervised_contrast(a: Tensor, b: Tensor, label: Tensor, temperature: float) -> Tensor:
    """L_out^sup of SupCon (Khosla et al., NeurIPS 2020, eq. 2), mean over the 2B embeddings.

    −1/|P(i)| Σ_{p ∈ P(i)} log exp(z_i·z_p/τ) / Σ_{k ≠ i} exp(z_i·z_k/τ), where P(i) are the other
    embeddings of i's class: its other view is always among them.

    Args:
        a: one view of each input [B, D], not 0; z is the same scaled to length 1.
        b: the other view [B, D].
        label: [B].
        temperature: τ > 0.
    """
    z = F.normalize(torch.cat([a, b]), dim=1)
    scores = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = scores - scores.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    label = label.repeat(2)
    positive = ((label[:, None] == label) & ~itself).to(log_p)
    return -((positive * log_p).sum(dim=1) / positive.sum(dim=1)).mean()
