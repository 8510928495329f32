"""Networks for texts: small classifiers of sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.initialization import initialize


class Embedding(nn.Module):
    """Distributions over words [B, words, L] to the averages of the words' vectors [B, width, L].

    Of one word at a place that is its vector, as any embedding gives. Vectors are short at first,
    with a standard deviation of 0.02: each changes only where its word occurs, and would else take
    long to leave its random start.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(words, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return (x.transpose(1, 2) @ self.weight).transpose(1, 2)


class TextCNN(nn.Module):
    """Inputs [B, in_channels, L] to logits [B, num_classes] (Kim, EMNLP 2014).

    Embeddings, convolutions over some numbers of words side by side, the largest value of each
    channel over all places, and a linear layer. BatchNorm after the convolutions, which the paper
    has not, leaves statistics to synthesize by.

    Args:
        in_channels: words of the vocabulary.
        num_classes: of the classifier.
        width: of the embeddings.
        channels: of each convolution.
        kernels: words that each one covers.
        dropout: of the pooled values, in training.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 64,
        channels: int = 64,
        kernels: Sequence[int] = (1, 2, 3),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embedding = nn.Sequential(Embedding(in_channels, width), nn.BatchNorm1d(width))
        self.phrases = Phrases(width, channels, kernels)
        self.pool = nn.AdaptiveMaxPool1d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels * len(kernels), num_classes)
        self.taps = {"stage1": "embedding", "stage2": "phrases", "pooled": "flatten"}
        self.taps["logits"] = "linear"
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.phrases(self.embedding(x))
        return self.linear(self.dropout(self.flatten(self.pool(x))))  # type: ignore[no-any-return]


class Phrases(nn.Module):
    """Convolutions side by side that keep the length: [B, C, L] to [B, kernels × channels, L]."""

    def __init__(self, in_channels: int, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(in_channels, channels, k, bias=False) for k in kernels
        )
        self.pads = [((k - 1) // 2, k // 2) for k in kernels]
        self.norm = nn.BatchNorm1d(channels * len(kernels))

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.convolutions, self.pads, strict=True)
        return F.relu(self.norm(torch.cat([conv(F.pad(x, pad)) for conv, pad in pairs], dim=1)))


class TextGRU(nn.Module):
    """Inputs [B, in_channels, L] to logits [B, num_classes]: a GRU in both directions (Cho et al.,
    EMNLP 2014) over embeddings, the largest value of each channel over all places, BatchNorm, and a
    linear layer.

    Its cells are called place by place: cuDNN's own loop takes no gradient by the input of a
    network in eval mode, which synthesis needs.

    Args:
        in_channels: words of the vocabulary.
        num_classes: of the classifier.
        width: of the embeddings.
        hidden: values of the state, in each direction.
    """

    channels_last = ("states",)

    def __init__(
        self, in_channels: int, num_classes: int, width: int = 64, hidden: int = 64
    ) -> None:
        super().__init__()
        self.embedding = nn.Sequential(Embedding(in_channels, width), nn.BatchNorm1d(width))
        self.states = BothWays(width, hidden)
        self.pool = nn.AdaptiveMaxPool1d(1)
        self.flatten = nn.Flatten()
        self.norm = nn.BatchNorm1d(2 * hidden)
        self.linear = nn.Linear(2 * hidden, num_classes)
        self.taps = {"stage1": "embedding", "stage2": "states", "pooled": "norm"}
        self.taps["logits"] = "linear"

    def forward(self, x: Tensor) -> Tensor:
        states = self.states(self.embedding(x))
        pooled = self.flatten(self.pool(states.transpose(1, 2)))
        return self.linear(self.norm(pooled))  # type: ignore[no-any-return]


class BothWays(nn.Module):
    """A GRU in each direction: [B, width, L] to the states at all places [B, L, 2 × hidden]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.forth, self.back = nn.GRUCell(width, hidden), nn.GRUCell(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        places = list(x.unbind(2))
        forth = _states(self.forth, places)
        back = _states(self.back, places[::-1])[::-1]
        return torch.cat([torch.stack(forth, 1), torch.stack(back, 1)], dim=2)


def _states(cell: nn.GRUCell, places: Sequence[Tensor]) -> list[Tensor]:
    state, found = None, []
    for x in places:
        state = cell(x, state)
        found.append(state)
    return found


class TextTransformer(nn.Module):
    """Inputs [B, in_channels, L] to logits [B, num_classes]: a small pre-LayerNorm encoder (Vaswani
    et al., NeurIPS 2017; Xiong et al., ICML 2020) whose tokens are averaged.

    It has no BatchNorm, and no mask: padding is a word like any other.

    Args:
        in_channels: words of the vocabulary.
        num_classes: of the classifier.
        input_size: (L,).
        width: of the tokens.
        depth: blocks.
        heads: of each block's attention.
        dropout: of the embeddings, in training.

    Raises:
        ValueError: for a width that the heads do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        input_size: Sequence[int],
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}: set another one")
        self.embedding = Embedding(in_channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(input_size[0], width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(width, num_classes)
        self.channels_last = tuple(f"blocks.{i}" for i in range(depth))
        self.tokens = tuple(f"blocks.{i}.qkv" for i in range(depth))
        self.taps = {f"stage{i + 1}": f"blocks.{i}" for i in range(depth)}
        self.taps |= {"attention": f"blocks.{depth - 1}.qkv", "pooled": "flatten"}
        self.taps["logits"] = "linear"

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.embedding(x).transpose(1, 2) + self.position)
        for block in self.blocks:
            x = block(x)
        pooled = self.flatten(self.pool(self.norm(x).transpose(1, 2)))
        return self.linear(pooled)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention and two linear layers on tokens [B, L, width], each after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]
