"""The recurrent networks: GRU and LSTM."""

from dataclasses import dataclass

from torch import Tensor, nn

from legibility.students._embedding import embed_positions
from legibility.students._signature import Signature
from legibility.students._student import Student


class _Recurrent(nn.Module):
    def __init__(self, embedding: nn.Module, cells: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.embedding = embedding
        self.cells = cells

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.cells(self.embedding(inputs))[0]
        return states


@dataclass(frozen=True)
class GRUStudent(Student):
    """Gated recurrent units; position t has read all before it.

    Forward FLOPs of the body per position and layer: 12 width^2 (two 3 width x width matrices, 2 per multiply-add).

    Attributes:
        depth: Number of layers.

    Example:
        >>> import torch
        >>> signature = Signature("tokens", (16,), outputs=50, per_position=True, vocabulary=50)
        >>> GRUStudent(width=8).build(signature)(torch.zeros(4, 16, dtype=torch.long)).output.shape
        torch.Size([4, 16, 50])
    """

    reads = frozenset({"tokens", "sequence"})

    depth: int = 1

    def body(self, signature: Signature, width: int) -> nn.Module:
        """Embed and run the GRU."""
        return _Recurrent(embed_positions(signature, width), nn.GRU(width, width, self.depth, batch_first=True))


@dataclass(frozen=True)
class LSTMStudent(Student):
    """Long short-term memory; position t has read all before it.

    Forward FLOPs of the body per position and layer: 16 width^2 (two 4 width x width matrices, 2 per multiply-add).

    Attributes:
        depth: Number of layers.

    Example:
        >>> import torch
        >>> signature = Signature("tokens", (16,), outputs=3, per_position=False, vocabulary=50)
        >>> LSTMStudent(width=8).build(signature)(torch.zeros(4, 16, dtype=torch.long)).output.shape
        torch.Size([4, 3])
    """

    reads = frozenset({"tokens", "sequence"})

    depth: int = 1

    def body(self, signature: Signature, width: int) -> nn.Module:
        """Embed and run the LSTM."""
        return _Recurrent(embed_positions(signature, width), nn.LSTM(width, width, self.depth, batch_first=True))
