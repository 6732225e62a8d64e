"""How much of the primary's hidden activations a student fails to explain."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from legibility.losses._inputs import check_floating, check_mask, working_precision

_ACTIVATIONS = "floating point activations, shaped (*batch, units)"


def fraction_of_variance_unexplained(
    primary: Float[Tensor, "*batch units"],
    student: Float[Tensor, "*batch units"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, " units"]:
    r"""Fraction of each hidden unit's variance that the student's prediction leaves unexplained, 1 - R^2.

        mean_i (h_i - g_i)^2 / var(h),    var(h) = mean_i (h_i - mean_j h_j)^2

    h: the primary's activation of one unit, g: the student's prediction of it; i, j run over all positions that count
    (every index of "*batch" where `mask` is True). Range [0, inf), without unit; lower is better. Predicting each
    unit's mean gives 1. Invariant to rescaling and shifting a unit together with its prediction.

    var(h) is detached: the primary can't win by spreading its activations. Gradients flow into both arguments through
    the numerator only, so a primary trained on this can still win by shrinking towards its mean: watch the activations'
    size and the number of live units.

    A unit without variance (constant over the positions that count, or fewer than 2 of them) explains nothing and
    can't be explained: its value is nan, its gradient zero. Average with `masked_mean(fvu, ~fvu.isnan())`.

    Args:
        primary: Activations h; bfloat16 and float16 are computed in float32.
        student: Predictions g, of the same shape.
        mask: True at positions that count; None for everywhere. What stands at other positions has no influence, even
            if it is NaN.

    Returns:
        One value per unit, in float32 (float64 if an argument is float64).

    Raises:
        TypeError: If `primary` or `student` is not floating point, or `mask` not boolean.
        ValueError: If the shapes differ, or there is no dimension for units.

    Example:
        >>> import torch
        >>> from legibility.losses import fraction_of_variance_unexplained, masked_mean
        >>> primary = torch.tensor([[0.0, 7.0], [2.0, 7.0]])  # variances 1 and 0
        >>> student = torch.tensor([[0.5, 7.0], [1.5, 7.0]])  # squared errors 1/4 and 0
        >>> fvu = fraction_of_variance_unexplained(primary, student)
        >>> fvu
        tensor([0.2500,    nan])
        >>> masked_mean(fvu, ~fvu.isnan())
        tensor(0.2500)

    Source:
        The complement of the coefficient of determination, Wright, "Correlation and causation", 1921.
    """
    check_floating(primary, "primary", _ACTIVATIONS)
    check_floating(student, "student", _ACTIVATIONS)
    if primary.ndim == 0:
        raise ValueError(f"`primary` must be {_ACTIVATIONS}, got a scalar")
    if primary.shape != student.shape:
        raise ValueError(
            f"`student` must have the shape of `primary` {tuple(primary.shape)}, got {tuple(student.shape)}: "
            "nothing is broadcast"
        )
    rows = (math.prod(primary.shape[:-1]), primary.shape[-1])
    target, prediction = working_precision(primary).reshape(rows), working_precision(student).reshape(rows)
    left_out = None
    if mask is not None:
        check_mask(mask, primary.shape[:-1], "the shape of `primary` without its units")
        left_out = ~mask.reshape(-1, 1)

    variance = _variance(target.detach(), left_out)
    squares = _mean(_zero(target - prediction, left_out).square(), left_out)
    live = variance > 0
    # Dividing the others by 1 keeps 0/0 out of the gradient; nan is only written over the result.
    return (squares / variance.where(live, 1.0)).masked_fill(~live, torch.nan)


def _zero(rows: Tensor, left_out: Tensor | None) -> Tensor:
    return rows if left_out is None else rows.masked_fill(left_out, 0.0)


def _mean(rows: Tensor, left_out: Tensor | None) -> Tensor:
    """Mean over rows, of which those left out are zero already; nan if there are none."""
    return rows.sum(0) / (len(rows) if left_out is None else (~left_out).sum())


def _variance(rows: Tensor, left_out: Tensor | None) -> Tensor:
    if len(rows) == 0:
        return rows.sum(0)
    # Measured from one of the rows that count, so that a constant unit comes out as exactly 0, not as rounding noise.
    first = rows[:1] if left_out is None else rows.index_select(0, (~left_out).int().argmax(0))
    shifted = _zero(rows - first, left_out)
    return _mean(_zero(shifted - _mean(shifted, left_out), left_out).square(), left_out)
