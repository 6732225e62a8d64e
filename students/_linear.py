"""The linear student."""

from dataclasses import dataclass

from torch import nn

from legibility.students._embedding import embed_positions
from legibility.students._signature import Signature
from legibility.students._student import Student


@dataclass(frozen=True)
class LinearStudent(Student):
    """A linear map through `width` numbers (a map of rank <= width), without any non-linearity.

    Features and images are flattened. Of tokens and sequences it sees one position, so that an output per position
    depends on the current input alone, and a pooled output on the bag of inputs.

    Example:
        >>> import torch
        >>> network = LinearStudent(width=4).build(Signature("features", (5,), outputs=2, per_position=False))
        >>> network(torch.randn(4, 5)).output.shape
        torch.Size([4, 2])
    """

    reads = frozenset({"features", "image", "tokens", "sequence"})

    def body(self, signature: Signature, width: int) -> nn.Module:
        """One linear layer or table."""
        if signature.reads in ("tokens", "sequence"):
            return embed_positions(signature, width)
        inputs = 1
        for length in signature.input_shape:
            inputs *= length
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width))
