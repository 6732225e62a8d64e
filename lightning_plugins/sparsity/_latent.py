"""Latent weights: what a threshold takes is kept beneath it, and what is learnt there adds up until it passes."""

from collections.abc import Callable

import torch
from torch import Tensor

from legibility.losses import in_pieces


def beneath(weight: Tensor, kept: Tensor | None) -> Tensor:
    """What is kept for a weight, at least in float32: nothing yet, or that of a checkpoint, wherever it was loaded to."""
    empty = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32), requires_grad=False)
    return empty if kept is None else kept.to(empty)


def settle(weight: Tensor, rest: Tensor, cut: Callable[[Tensor], Tensor]) -> None:
    """Cuts ``weight + rest``, the latent weight: ``weight`` becomes what the cut leaves, ``rest`` what it takes."""
    for above, below in zip(in_pieces(weight), in_pieces(rest), strict=True):
        below += above
        above.copy_(cut(below))
        below -= above
