"""A transfer loss between transformers, on their self-attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.spec import Batch
from distillers.base import Side, Taps, TransferLoss
from models.classifier import Outputs
from models.taps import named_taps

Attention = nn.MultiheadAttention | None
"""The layer from a tap's feature to queries, keys and values; None if the feature is these."""


class MiniLM(TransferLoss):
    """Σ_taps Σ_relations mean KL(R_t ‖ R_s), R = softmax(X Yᵀ / √d) for X, Y among Q, K and V.

    MiniLM (Wang et al., NeurIPS 2020, eq. 5 to 8): the attention map, of queries and keys, and
    the relation of values. As in MiniLMv2 (Findings of ACL 2021, eq. 4 to 6), whose relations are
    qq, kk and vv, Q, K and V [B, N, D] are first divided into relation heads of width
    d = D / ``relation_heads``, so that networks may differ in width and in heads. R is
    [B, heads, N, N], and the mean is over inputs, heads and rows. Nothing is learned.

    Maps are computed here, since fused attention has none. The tap is what Q, K and V come from:
    timm's ``blocks.N.attn.qkv``, or torchvision's ``encoder.layers.encoder_layer_N.ln_1``, whose
    output is multiplied by the attention layer's weights once more. ``attention`` is the last
    layer's, in both. What a network does to Q and K afterwards (norms, rotary positions) is
    ignored.

    Args:
        taps: of both networks, with equally many tokens.
        relations: pairs out of q, k and v.
        relation_heads: divides the width of both networks; MiniLMv2 takes 48 for a width of 768.

    Raises:
        ValueError: for an argument out of range, a tap of something else, or tokens or widths
            that do not fit.
    """

    def __init__(
        self,
        taps: Taps = ("attention",),
        relations: Sequence[str] = ("qk", "vv"),
        relation_heads: int = 8,
    ) -> None:
        super().__init__(taps)
        self.relations = tuple(relations)
        if not self.relations or any(len(r) != 2 or set(r) - set("qkv") for r in self.relations):
            raise ValueError(f"a relation is a pair out of q, k and v, not one of {self.relations}")
        if relation_heads < 1:
            raise ValueError(f"relation_heads must be at least 1, but is {relation_heads}")
        self.heads = relation_heads

    def prepare(self, student: Side, teacher: Side) -> None:
        # tuples: no part of the loss's state
        self.attentions = (
            tuple(attention_at(student, tap, "student") for tap in self.student_taps),
            tuple(attention_at(teacher, tap, "teacher") for tap in self.teacher_taps),
        )
        for pair in self._read(student.outputs, teacher.outputs):
            tokens = [x[0].shape[1] for x in pair]
            widths = [x[0].shape[2] for x in pair]
            if tokens[0] != tokens[1]:
                raise ValueError(
                    "MiniLM compares relations between tokens, but the student has "
                    f"{tokens[0]} and the teacher {tokens[1]}: give them one patch size"
                )
            if any(width % self.heads for width in widths):
                raise ValueError(
                    f"relation_heads={self.heads} does not divide both widths, {widths[0]} "
                    f"and {widths[1]}: choose a number that does"
                )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for ours, theirs in self._read(student, teacher):
            for relation in self.relations:
                log_s, log_t = (self._log_relation(qkv, relation) for qkv in (ours, theirs))
                log_t = log_t.detach()  # or the projections of a peer would learn
                losses.append((log_t.exp() * (log_t - log_s)).sum(dim=3).mean())
        return torch.stack(losses).sum()

    def _read(
        self, student: Outputs, teacher: Outputs
    ) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Q, K and V of both networks at each tap."""
        both = zip(self.pairs(student, teacher), *self.attentions, strict=True)
        return [(project(s, ours), project(t, theirs)) for (s, t), ours, theirs in both]

    def _log_relation(self, qkv: tuple[Tensor, ...], relation: str) -> Tensor:
        """log R [B, heads, N, N]."""
        x, y = (
            qkv["qkv".index(letter)].unflatten(2, (self.heads, -1)).transpose(1, 2)
            for letter in relation
        )
        return F.log_softmax(x @ y.transpose(2, 3) / x.shape[3] ** 0.5, dim=3)


def attention_at(side: Side, tap: str, role: str) -> Attention:
    """The layer that makes Q, K and V from a tap.

    Raises:
        ValueError: if the tap is neither such a layer nor the input of one.
    """
    assert side.network is not None
    module = side.network.module
    parent, _, leaf = named_taps(module).get(tap, tap).rpartition(".")
    if leaf == "qkv" and side.outputs.features[tap].dim() == 3:
        return None
    if leaf == "ln_1":
        for child in module.get_submodule(parent).children():
            if isinstance(child, nn.MultiheadAttention) and child.in_proj_weight is not None:
                return child
    raise ValueError(
        f"MiniLM reads queries, keys and values, but the {role}'s tap {tap!r} gives none: "
        "name timm's blocks.N.attn.qkv or torchvision's encoder.layers.encoder_layer_N.ln_1"
    )


def project(feature: Tensor, attention: Attention) -> tuple[Tensor, ...]:
    """Q, K and V, each [B, N, D]."""
    if attention is not None:
        feature = F.linear(feature, attention.in_proj_weight, attention.in_proj_bias)
    return feature.chunk(3, dim=2)
