"""The plain convolutional network: causal over positions, strided over images."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from legibility.students._embedding import embed_positions
from legibility.students._signature import Signature
from legibility.students._student import Student


class CausalConv(nn.Module):
    """1-D convolution (batch, channels, positions) that sees position t and those before it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.padding = (kernel - 1) * dilation
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)

    def forward(self, channels: Tensor) -> Tensor:
        """(batch, inputs, positions) -> (batch, outputs, positions)."""
        convolved: Tensor = self.conv(functional.pad(channels, (self.padding, 0)))
        return convolved


class _OverPositions(nn.Module):
    def __init__(self, signature: Signature, width: int, depth: int, kernel: int) -> None:
        super().__init__()
        self.embedding = embed_positions(signature, width)
        self.convs = nn.ModuleList(CausalConv(width, width, kernel) for _ in range(depth))

    def forward(self, inputs: Tensor) -> Tensor:
        channels: Tensor = self.embedding(inputs).transpose(1, 2)
        for conv in self.convs:
            channels = functional.relu(conv(channels))
        return channels.transpose(1, 2)


def _over_image(channels: int, width: int, depth: int, kernel: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2), nn.ReLU()]
        channels = width
    # Four cells keep a rough idea of where something is, whatever the image's size.
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, width), nn.ReLU())


@dataclass(frozen=True)
class ConvStudent(Student):
    """ReLU convolutions: 1-D and causal for tokens and sequences, 2-D with stride 2 for images.

    Over positions it sees the last depth * (kernel - 1) + 1.

    Attributes:
        depth: Number of convolutions.
        kernel: Their size.

    Example:
        >>> import torch
        >>> network = ConvStudent(width=16).build(Signature("image", (1, 8, 8), outputs=10, per_position=False))
        >>> network(torch.randn(4, 1, 8, 8)).output.shape
        torch.Size([4, 10])
    """

    reads = frozenset({"image", "tokens", "sequence"})

    depth: int = 2
    kernel: int = 3

    def body(self, signature: Signature, width: int) -> nn.Module:
        """Embed and convolve, or convolve, pool to 2 x 2 and join."""
        if signature.reads == "image":
            return _over_image(signature.input_shape[0], width, self.depth, self.kernel)
        return _OverPositions(signature, width, self.depth, self.kernel)
