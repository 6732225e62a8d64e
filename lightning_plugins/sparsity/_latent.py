"""Latent weights: what a threshold takes is kept beneath it, and what is learnt there adds up until it passes."""

from collections.abc import Callable

import torch
from torch import Tensor

from legibility.lightning_plugins.sparsity._layout import Layout
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
