"""How far a model's answers move, and how much they say at all, in bits."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from legibility.scores._inputs import check_floating

LEAST_INFORMATION = 0.05
"""A model whose answers carry fewer bits than this about the input is as good as constant."""

Rest = Callable[[Tensor], Tensor]
"""What the model does after a layer: activations `(N, ..., units)` to logits `(N, ..., classes)`.

It is asked a batch at a time, unless it has an attribute `everything_at_once` that is True."""


def kl_bits(
    logits: Float[Tensor, "positions classes"], other: Float[Tensor, "positions classes"]
) -> Float[Tensor, " positions"]:
    """`KL(p || q)` of each position in bits, float64; positions and classes of both must agree."""
    log_p = logits.to(torch.float64).log_softmax(-1)
    log_q = other.to(torch.float64).log_softmax(-1)
    p = log_p.exp()
    # A class that p rules out costs nothing, whatever q says of it.
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1) / math.log(2)


def information_bits(logits: Float[Tensor, "positions classes"]) -> float:
    """Mean `KL(p || marginal)` in bits: what an answer says about its input. 0 for a constant model."""
    log_p = logits.to(torch.float64).log_softmax(-1)
    marginal = log_p.logsumexp(0, keepdim=True) - math.log(len(log_p))
    return float(kl_bits(log_p, marginal.expand_as(log_p)).mean())


SPREAD = 3.0
"""RMS that answers are brought to before effects on them are compared: confident, but not all decided."""


def one_scale(logits: Float[Tensor, "positions classes"]) -> float:
    """What logits are divided by so that what varies in them has the RMS 3; 1 where nothing varies.

    Sharpening or flattening all answers then changes nothing.
    """
    exact = logits.to(torch.float64)
    varying = exact - exact.mean(0)
    varying = varying - varying.mean(-1, keepdim=True)
    size = float(varying.square().mean().sqrt())
    # A rounding error of a constant is no variation.
    return size / SPREAD if size > 1e-9 * float(exact.abs().max()) else 1.0


@torch.no_grad()
def answers(rest: Rest, activations: Tensor, mask: Tensor, *, batch_size: int = 512) -> Tensor:
    """Logits `(positions, classes)` of the rest of a model where `mask` is True, a batch at a time.

    Raises:
        TypeError: if `rest` doesn't give floating point tensors.
        ValueError: if they aren't shaped like `activations` with classes for units, or aren't finite.
    """
    found = []
    if getattr(rest, "everything_at_once", False):
        batch_size = len(activations)
    for part, counted in zip(torch.split(activations, batch_size), torch.split(mask, batch_size), strict=True):
        logits = rest(part)
        check_floating(logits, "rest(activations)")
        if logits.shape[:-1] != part.shape[:-1] or logits.shape[-1] < 2:
            raise ValueError(
                f"`rest` must give logits {(*part.shape[:-1], 'classes')} of at least 2 classes for activations "
                f"{tuple(part.shape)}, got {tuple(logits.shape)}; a single logit z means [0, z], a regression has none."
            )
        found.append(logits[counted])
    logits = torch.cat(found)
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("`rest` must give finite logits where `mask` is True: the model diverged there.")
    return logits
