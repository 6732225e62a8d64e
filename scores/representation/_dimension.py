"""How many directions activations use, how large they are, which units live: guards against a collapsed primary.

None of these has a better direction. They tell a legible primary from one that was made trivial: a rank that collapses,
norms that shrink, units that die while a student's error falls.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from legibility.scores._inputs import check_floating, check_mask


def participation_ratio(
    activations: Float[Tensor, "*batch units"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    unbiased: bool = True,
) -> float:
    """Number of equally strong directions with the same spread: `PR = (tr C)^2 / tr(C^2)`, `C` the covariance.

    `diag(4, 1, 1, 1)` has 49 / 19 = 2.57895.

    The plain form on `n` samples is biased towards `n`. The unbiased form divides the unbiased estimates of
    `(tr C)^2` and `tr(C^2)` for independent samples of any distribution (the quotient is only nearly unbiased). It
    needs `n >= 4` and can leave the range at small `n`; it is NaN where the estimate of `tr(C^2)` isn't positive.

    Card:
        Range and direction: 1 to `units`; no direction is better. Cost: `samples * units^2`.
        Control: a random-init model, and the same layer of another seed.
        Gamed by: units of large scale, which are all that it sees: take the layer of a canonical model.
        Not trained on, unless a term uses the activations' covariance.

    Args:
        activations: floating point, any leading shape.
        mask: positions that count; None means all.
        unbiased: correct for the number of samples; False for the plain form.

    Returns:
        the ratio; NaN when no unit varies.

    Raises:
        TypeError: if `activations` isn't floating point.
        ValueError: if shapes don't fit, values aren't finite, or there are too few samples.

    Example:
        >>> import torch
        >>> from legibility.scores import participation_ratio
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> participation_ratio(square, unbiased=False)
        2.0

    Source: estimates of Himeno and Yamada, "Estimations for some functions of covariance matrix in high dimension under
    non-normality and its applications", 2014.
    """
    centred = _centred(activations, mask, least=4 if unbiased else 2)
    samples = centred.shape[0]
    # The smaller of the two Gram matrices has the same nonzero eigenvalues.
    gram = centred.T @ centred if centred.shape[1] <= samples else centred @ centred.T
    gram = gram / (samples - 1)
    trace, squares = gram.trace(), gram.square().sum()
    if unbiased:
        return unbiased_participation(trace, squares, centred.square().sum(1).square().sum() / (samples - 1), samples)
    return (trace**2 / squares).item() if squares > 0 else math.nan


def unbiased_participation(trace: Tensor, squares: Tensor, fourth: Tensor, samples: int) -> float:
    """The unbiased form from `tr C`, `tr C^2` and `sum |x - mean|^4 / (n - 1)`, `C` divided by n - 1; NaN if undefined."""
    factor = (samples - 1) / (samples * (samples - 2) * (samples - 3))
    trace_squared = factor * (2 * squares + (samples**2 - 3 * samples + 1) * trace**2 - samples * fourth)
    squares = factor * ((samples - 1) * (samples - 2) * squares + trace**2 - samples * fourth)
    return (trace_squared / squares).item() if squares > 0 else math.nan


def effective_rank(activations: Float[Tensor, "*batch units"], *, mask: Bool[Tensor, "*batch"] | None = None) -> float:
    """Exponential of the entropy of the covariance's normalised eigenvalues: `exp(-sum_i p_i ln p_i)`.

    Range 1 to `units` (`diag(4, 1, 1, 1)`: 3.17003); no direction is better. Biased low when samples are few: compare
    only at equal sample counts.

    Args:
        activations: floating point, any leading shape, at least 2 samples.
        mask: positions that count; None means all.

    Returns:
        the rank; NaN when no unit varies.

    Raises:
        TypeError: if `activations` isn't floating point.
        ValueError: if shapes don't fit, values aren't finite, or there are too few samples.

    Example:
        >>> import torch
        >>> from legibility.scores import effective_rank
        >>> line = torch.linspace(-1, 1, 5).unsqueeze(1) @ torch.tensor([[1.0, 2.0, 3.0]])
        >>> round(effective_rank(line), 6)
        1.0

    Source: Roy and Vetterli, "The effective rank", 2007, on eigenvalues of the covariance.
    """
    centred = _centred(activations, mask, least=2)
    eigenvalues = torch.linalg.svdvals(centred).square()
    total = eigenvalues.sum()
    if not total > 0:
        return math.nan
    return float(torch.special.entr(eigenvalues / total).sum().exp())


def activation_rms(activations: Float[Tensor, "*batch units"], *, mask: Bool[Tensor, "*batch"] | None = None) -> float:
    """Root mean square over positions and units, in the activations' own units; no direction is better.

    Args:
        activations: floating point, any leading shape.
        mask: positions that count; None means all.

    Returns:
        the root mean square, >= 0.

    Raises:
        TypeError: if `activations` isn't floating point.
        ValueError: if shapes don't fit, values aren't finite, or no position counts.

    Example:
        >>> import torch
        >>> from legibility.scores import activation_rms
        >>> activation_rms(torch.tensor([[3.0, 4.0], [0.0, 5.0]]))  # sqrt(50 / 4)
        3.5355339059327378
    """
    return _selected(activations, mask, least=1).square().mean().sqrt().item()


def live_units(
    activations: Float[Tensor, "*batch units"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    threshold: float = 1e-3,
) -> int:
    """Number of units that vary: standard deviation above `threshold` times its root mean square over units.

    Range 0 to `units`; no direction is better.

    Args:
        activations: floating point, any leading shape.
        mask: positions that count; None means all.
        threshold: relative, >= 0.

    Returns:
        the count.

    Raises:
        TypeError: if `activations` isn't floating point.
        ValueError: if shapes don't fit, values aren't finite, `threshold` is negative, or there are too few samples.

    Example:
        >>> import torch
        >>> from legibility.scores import live_units
        >>> live_units(torch.tensor([[1.0, 7.0], [2.0, 7.0]]))
        1
    """
    if not threshold >= 0.0:
        raise ValueError(f"`threshold` must be >= 0, got {threshold}.")
    deviation = _centred(activations, mask, least=2).square().mean(0).sqrt()
    return int((deviation > threshold * deviation.square().mean().sqrt()).sum())


def _selected(activations: Tensor, mask: Tensor | None, *, least: int) -> Tensor:
    check_floating(activations, "activations")
    if activations.ndim < 2 or activations.shape[-1] == 0:
        raise ValueError(f"`activations` must be shaped (..., units) with units > 0, got {tuple(activations.shape)}.")
    check_mask(mask, activations)
    selected = activations.detach().flatten(0, -2) if mask is None else activations.detach()[mask]
    if selected.shape[0] < least:
        raise ValueError(f"`activations` must hold at least {least} unmasked samples, got {selected.shape[0]}.")
    if not bool(torch.isfinite(selected).all()):
        raise ValueError("`activations` must be finite where `mask` is True.")
    return selected.to(torch.float64)


def _centred(activations: Tensor, mask: Tensor | None, *, least: int) -> Tensor:
    selected = _selected(activations, mask, least=least)
    return selected - selected.mean(0)
