"""The Transformer that the training benchmark trains: GPT-2's blocks around any attention function.

Learned positions, a layer norm before each half of a block, GELU, biases, the embedding used again as
the last product, GPT-2's initialisation; no dropout. Without the causal mask the same blocks stand for
an encoder. The attention is an argument of :meth:`Transformer.forward`, so that contestants share one
model, its weights and its optimizer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu, linear


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        vocabulary: rows of the embedding.
        causal: whether a token sees only itself and what comes before it.
        hidden: width inside the MLP; None means four times ``width``.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    causal: bool = True
    hidden: int | None = None


class Block(nn.Module):
    """Attention, then an MLP, each added to what came in."""

    def __init__(self, shape: Shape):
        super().__init__()
        width, hidden = shape.width, shape.hidden or 4 * shape.width
        self.heads, self.causal = shape.heads, shape.causal
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor, attention: Callable) -> torch.Tensor:
        batch, seq, width = x.shape
        together = self.query_key_value(self.attention_norm(x))
        query, key, value = together.view(batch, seq, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Autocast would take a softmax written in PyTorch to float32, and so double what standard
        # attention keeps; every contestant computes in the dtype that it is given.
        with torch.autocast(x.device.type, enabled=False):
            mixed = attention(query, key, value, self.causal)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, seq, width))
        return x + self.mlp_out(gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Tokens to logits.

    Args:
        shape: the sizes.
        seq: the longest sequence, which is how many positions are learned.
    """

    def __init__(self, shape: Shape, seq: int):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(seq, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self._initialise()

    def forward(
        self, tokens: torch.Tensor, attention: Callable, predicted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits of the places that are predicted, ``(places, vocabulary)``.

        Args:
            tokens: ``(batch, seq)``, integers.
            attention: ``attention(query, key, value, causal)``, as the contestants are.
            predicted: places in the flattened ``tokens``; None means all of them.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x, attention)
        x = x.flatten(0, 1)
        if predicted is not None:
            x = x[predicted]
        return linear(self.norm(x), self.embedding.weight)

    def parameter_count(self) -> int:
        """Numbers that are learned; the embedding, used twice, counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal of 0.02; what adds to the residual stream less, by the number of such additions."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("_out.weight"):
                parameter.normal_(std=0.02 * (2 * self.shape.layers) ** -0.5)
            elif "norm" not in name:
                parameter.normal_(std=0.02)
