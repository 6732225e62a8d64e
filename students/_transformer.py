"""The tiny causal transformer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.students._embedding import embed_positions
from legibility.students._signature import Signature
from legibility.students._student import Student


def _sinusoids(positions: int, width: int, device: torch.device) -> Tensor:
    """(positions, width): sine and cosine of the position at falling frequencies, for any number of positions."""
    pairs = (width + 1) // 2
    frequency = torch.exp(torch.arange(pairs, device=device) * (-math.log(10_000.0) / pairs))
    angle = torch.arange(positions, device=device).unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, states: Tensor) -> Tensor:
        batch, positions, width = states.shape
        projected = self.queries_keys_values(self.attention_norm(states))
        query, key, value = projected.view(batch, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.join(attended.transpose(1, 2).reshape(batch, positions, width))
        mixed: Tensor = states + self.mlp(states)
        return mixed


class _Blocks(nn.Module):
    def __init__(self, embedding: nn.Module, blocks: nn.ModuleList, width: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.embedding(inputs)
        states = states + _sinusoids(states.shape[1], states.shape[2], states.device)
        for block in self.blocks:
            states = block(states)
        normed: Tensor = self.norm(states)
        return normed


@dataclass(frozen=True)
class TransformerStudent(Student):
    """Pre-norm causal transformer with sinusoidal positions and an MLP of twice the width.

    Attributes:
        depth: Number of blocks.
        heads: Attention heads; the greatest common divisor with the width is used.

    Example:
        >>> import torch
        >>> signature = Signature("tokens", (16,), outputs=50, per_position=True, vocabulary=50)
        >>> TransformerStudent(width=8).build(signature)(torch.zeros(4, 16, dtype=torch.long)).output.shape
        torch.Size([4, 16, 50])
    """

    reads = frozenset({"tokens", "sequence"})

    depth: int = 2
    heads: int = 2

    def body(self, signature: Signature, width: int) -> nn.Module:
        """Embed, add positions, `depth` blocks, norm."""
        blocks = nn.ModuleList(_Block(width, math.gcd(width, self.heads)) for _ in range(self.depth))
        return _Blocks(embed_positions(signature, width), blocks, width)
