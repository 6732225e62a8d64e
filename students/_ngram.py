"""The n-gram model with learned embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.students._signature import Signature
from legibility.students._student import Student

MULTIPLIER = 0x9E3779B1  # odd and without pattern (golden ratio * 2^32), as in multiplicative hashing


class _NGrams(nn.Module):
    def __init__(self, vocabulary: int, width: int, order: int, buckets: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.order = order
        self.buckets = buckets
        self.table = nn.EmbeddingBag(vocabulary + (order - 1) * buckets, width, mode="sum")

    def forward(self, ids: Tensor) -> Tensor:
        batch, positions = ids.shape
        rows = [ids]
        history = ids
        for length in range(1, self.order):
            # The token `length` positions earlier; 0 stands for "before the first".
            earlier = functional.pad(ids + 1, (length, 0))[:, :positions]
            history = history * (self.vocabulary + 1) + earlier
            mixed = (history * MULTIPLIER).bitwise_right_shift(15)
            rows.append(mixed.remainder(self.buckets) + self.vocabulary + (length - 1) * self.buckets)
        vectors: Tensor = self.table(torch.stack(rows, -1).view(batch * positions, self.order))
        return vectors.view(batch, positions, -1)


@dataclass(frozen=True)
class NGramStudent(Student):
    """Sum of one learned vector for each of the last 1-, 2-, ..., `order`-gram; longer ones than 1 are hashed.

    Attributes:
        order: Length of the longest n-gram.
        buckets: Rows of the table for each length above 1; n-grams that share a row share a vector.

    Example:
        >>> import torch
        >>> signature = Signature("tokens", (16,), outputs=50, per_position=True, vocabulary=50)
        >>> NGramStudent(width=8).build(signature)(torch.zeros(4, 16, dtype=torch.long)).output.shape
        torch.Size([4, 16, 50])
    """

    reads = frozenset({"tokens"})

    order: int = 3
    buckets: int = 2048

    def body(self, signature: Signature, width: int) -> nn.Module:
        """The table of n-grams."""
        assert signature.vocabulary is not None
        return _NGrams(signature.vocabulary, width, self.order, self.buckets)
