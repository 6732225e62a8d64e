"""From what is read at one position to a vector."""

from torch import nn

from legibility.students._signature import Signature


def embed_positions(signature: Signature, size: int) -> nn.Module:
    """A module (batch, positions) ids or (batch, positions, features) floats -> (batch, positions, size).

    Args:
        signature: Of tokens or a sequence.
        size: Size of the vectors.
    """
    if signature.vocabulary is not None:
        return nn.Embedding(signature.vocabulary, size)
    return nn.Linear(signature.input_shape[-1], size)
