"""The gated dilated convolutional network."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from legibility.students._conv import CausalConv
from legibility.students._embedding import embed_positions
from legibility.students._signature import Signature
from legibility.students._student import Student


class _GatedConvs(nn.Module):
    def __init__(self, signature: Signature, width: int, depth: int, kernel: int) -> None:
        super().__init__()
        self.embedding = embed_positions(signature, width)
        self.convs = nn.ModuleList(
            CausalConv(width, 2 * width, kernel, dilation=kernel**layer) for layer in range(depth)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        channels: Tensor = self.embedding(inputs).transpose(1, 2)
        for conv in self.convs:
            channels = channels + functional.glu(conv(channels), dim=1)
        return channels.transpose(1, 2)


@dataclass(frozen=True)
class GatedConvStudent(Student):
    """Residual gated convolutions (gated linear units) with dilations 1, kernel, kernel^2, ..., causal.

    It sees the last kernel^depth positions.

    Attributes:
        depth: Number of gated layers.
        kernel: Size of each convolution and growth of the dilation.

    Source: Dauphin et al., Language Modeling with Gated Convolutional Networks (2017); the dilations as in
    van den Oord et al., WaveNet (2016).

    Example:
        >>> import torch
        >>> signature = Signature("sequence", (12, 3), outputs=2, per_position=True)
        >>> GatedConvStudent(width=8).build(signature)(torch.randn(4, 12, 3)).output.shape
        torch.Size([4, 12, 2])
    """

    reads = frozenset({"tokens", "sequence"})

    depth: int = 4
    kernel: int = 2

    def body(self, signature: Signature, width: int) -> nn.Module:
        """Embed, then add `depth` gated convolutions."""
        return _GatedConvs(signature, width, self.depth, self.kernel)
