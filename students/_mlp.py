"""The multi-layer perceptron, for every kind of input."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from legibility.students._embedding import embed_positions
from legibility.students._signature import Signature
from legibility.students._student import Student


class CausalWindow(nn.Module):
    """(batch, positions, size) -> (batch, positions, size * context): each position with those before it.

    Positions before the first are zeros.
    """

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context

    def forward(self, vectors: Tensor) -> Tensor:
        """Concatenate positions t - context + 1 ... t."""
        padded = functional.pad(vectors, (0, 0, self.context - 1, 0))
        return padded.unfold(1, self.context, 1).flatten(2)


@dataclass(frozen=True)
class MLPStudent(Student):
    """ReLU layers of equal width over features, flattened images, or the last `context` positions.

    Tokens are embedded in width / 4 numbers per position; sequences are projected to as many.

    Attributes:
        depth: Number of ReLU layers.
        context: Number of positions seen (tokens and sequences).

    Example:
        >>> import torch
        >>> network = MLPStudent(depth=3, width=16).build(Signature("features", (5,), outputs=2, per_position=False))
        >>> network(torch.randn(4, 5)).output.shape
        torch.Size([4, 2])
    """

    reads = frozenset({"features", "image", "tokens", "sequence"})

    depth: int = 2
    context: int = 8

    def body(self, signature: Signature, width: int) -> nn.Module:
        """Flatten or window, then `depth` ReLU layers."""
        layers: list[nn.Module]
        if signature.reads in ("tokens", "sequence"):
            size = max(4, width // 4)
            layers = [embed_positions(signature, size), CausalWindow(self.context)]
            inputs = size * self.context
        else:
            layers = [nn.Flatten()]
            inputs = 1
            for length in signature.input_shape:
                inputs *= length
        for _ in range(self.depth):
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        return nn.Sequential(*layers)
