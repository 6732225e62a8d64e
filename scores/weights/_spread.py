"""Other ways to say that a few numbers carry most: Hoyer's measure, and how many units are at work at a time."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from legibility.scores._inputs import check_floating, check_mask


def hoyer(values: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Hoyer's sparsity: `(sqrt(n) - |w|_1 / |w|_2) / (sqrt(n) - 1)`.

    Range 0 (all equal in size) to 1 (a single nonzero), higher = sparser: Gaussian .2021, 10 of 100 equal .7597. Unlike
    the Gini coefficient it depends on `n` at equal distribution: don't compare widths by it.

    Args:
        values: any shape, floating point, at least 2 elements.

    Returns:
        scalar, float64; NaN when all values are zero.

    Raises:
        TypeError: if `values` isn't floating point.
        ValueError: if it has fewer than 2 elements or isn't finite.

    Example:
        >>> import torch
        >>> from legibility.scores import hoyer
        >>> round(hoyer(torch.tensor([0.0, 1.0, 3.0])).item(), 4)  # (sqrt 3 - 4 / sqrt 10) / (sqrt 3 - 1)
        0.6381

    Source: Hoyer, "Non-negative matrix factorization with sparseness constraints", 2004.
    """
    check_floating(values, "values")
    if values.numel() < 2 or not bool(torch.isfinite(values).all()):
        raise ValueError("`values` must hold at least two elements, all of them finite.")
    exact = values.detach().double().abs()
    exact = exact / exact.max().clamp(min=torch.finfo(torch.float64).tiny)  # no square overflows or vanishes
    length = exact.square().sum().sqrt()
    root = math.sqrt(exact.numel())
    return torch.where(length > 0, (root - exact.sum() / length) / (root - 1), torch.nan)


def activation_l0(
    activations: Float[Tensor, "*batch units"], *, mask: Bool[Tensor, "*batch"] | None = None, threshold: float = 0.0
) -> float:
    """Share of units at work at a time: mean over positions of the share with `|a| > threshold` of the unit's RMS.

    Range 0 to 1, lower = fewer at a time. Units that never are at work count in the denominator: read it beside
    `live_units`. With `threshold` 0 it counts exact nonzeros, which only rectifying activations make rare; relative to
    each unit's own RMS it doesn't change when units are rescaled.

    Args:
        activations: floating point, any leading shape.
        mask: positions that count; None means all.
        threshold: in units of each unit's RMS, at least 0.

    Returns:
        the share; NaN when every activation is zero.

    Raises:
        TypeError: if `activations` isn't floating point.
        ValueError: if shapes don't fit, values aren't finite, or no position counts.

    Example:
        >>> import torch
        >>> from legibility.scores import activation_l0
        >>> activation_l0(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0], [0.0, 1.0]]))  # (1 + 0 + 2 + 1) / 8
        0.5
    """
    check_floating(activations, "activations")
    check_mask(mask, activations)
    if threshold < 0:
        raise ValueError(f"`threshold` must be at least 0, got {threshold}.")
    rows = activations.detach().reshape(-1, activations.shape[-1]) if mask is None else activations.detach()[mask]
    if rows.shape[0] == 0 or not bool(torch.isfinite(rows).all()):
        raise ValueError("`activations` must hold at least one position that counts, all of them finite.")
    exact = rows.double()
    size = exact.square().mean(0).sqrt()
    if not bool((size > 0).any()):
        return math.nan
    return float((exact.abs() > threshold * size).double().mean())
