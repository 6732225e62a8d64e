"""Random Fourier features: a kernel machine."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from legibility.students._signature import Signature
from legibility.students._student import Student


class _Cosines(nn.Module):
    frequencies: Tensor
    phases: Tensor

    def __init__(self, inputs: int, width: int, bandwidth: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(inputs, width) / (bandwidth * math.sqrt(inputs)))
        self.register_buffer("phases", torch.rand(width) * (2 * math.pi))

    def forward(self, inputs: Tensor) -> Tensor:
        return math.sqrt(2.0) * torch.cos(inputs.flatten(1) @ self.frequencies + self.phases)


@dataclass(frozen=True)
class FourierStudent(Student):
    """Fixed random Fourier features with trained linear heads, on standardised features or flattened images.

    sqrt(2) cos(x W / (bandwidth sqrt(n)) + b) with W normal and b uniform approximates a Gaussian kernel whose width
    is `bandwidth` times the typical norm sqrt(n) of n standardised inputs.

    Source: Rahimi and Recht, Random Features for Large-Scale Kernel Machines (2007).

    Attributes:
        bandwidth: Width of the kernel; smaller follows finer detail.

    Example:
        >>> import torch
        >>> network = FourierStudent(width=64).build(Signature("features", (5,), outputs=2, per_position=False))
        >>> network(torch.randn(4, 5)).output.shape
        torch.Size([4, 2])
    """

    reads = frozenset({"features", "image"})

    bandwidth: float = 1.0

    def body(self, signature: Signature, width: int) -> nn.Module:
        """The fixed cosines."""
        inputs = 1
        for length in signature.input_shape:
            inputs *= length
        return _Cosines(inputs, width, self.bandwidth)
