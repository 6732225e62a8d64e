"""What is kept beneath a weight, in higher precision: what a threshold took (latent weights), or what rounding did."""

from collections.abc import Callable

import torch
from torch import Tensor

from legibility.lightning_plugins.sparsity.weights._layout import Layout
from legibility.losses import in_pieces


def beneath(weight: Tensor, kept: Tensor | None, layout: Layout | None) -> Tensor:
    """What is kept for a weight, at least in float32: nothing yet, or that of a checkpoint, wherever it was loaded to.

    Args:
        weight: A whole one, or this rank's piece.
        kept: Of the whole weight.
        layout: Of a sharded one.
    """
    empty = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    if kept is None:
        return empty
    kept = kept.to(empty)
    return empty.copy_(kept if layout is None else layout.part(kept))


def settle(weight: Tensor, rest: Tensor, cut: Callable[[Tensor], Tensor]) -> None:
    """Cuts ``weight + rest``, the latent weight: ``weight`` becomes what the cut leaves, ``rest`` what it takes."""
    for above, below in zip(in_pieces(weight), in_pieces(rest), strict=True):
        below += above
        above.copy_(cut(below))
        below -= above


def settle_rounded(weight: Tensor, rest: Tensor, cut: Callable[[Tensor], Tensor], *, whole: bool = False) -> None:
    """Cuts a weight of low precision: ``weight`` becomes the cut one, rounded, and ``rest`` keeps what rounding took.

    Steps that are too small to round to anything add up so.

    Args:
        weight: Changed in place.
        rest: Of the same shape, in higher precision; changed in place.
        cut: The step.
        whole: It needs all of the weight at once.
    """
    pieces = ([weight], [rest]) if whole else (in_pieces(weight), in_pieces(rest))
    for above, below in zip(*pieces, strict=True):
        below += above
        below.copy_(cut(below))
        above.copy_(below)
        below -= above
