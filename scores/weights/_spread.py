"""Other ways to say that a few numbers carry most: Hoyer's measure, and how many units are at work at a time."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from legibility.scores._collected import LIMIT, Collected
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

    Card:
        Range and direction: [0, 1]; fewer at a time is easier to look at, but no direction is better by itself: an
        untrained rectified layer has about 1/2, a dying one less. Cost: none beyond the activations.
        Control: a random-init model, and `live_units`. Gamed by: units that died, and by smearing one concept over
        several that are rarely on. Temperature and rescaled units change nothing.
        Not trained on, unless a term made activations sparse.

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

    Source: lifetime sparsity as in Willmore and Tolhurst, "Characterizing the sparseness of neural codes", 2001.
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


class ActivationL0(Collected):
    """`activation_l0` over everything that `update` was given (its card is there), ranks one after the other.

    `update(activations, mask=None)`; `compute()` gives the share, a float64 scalar.

    Args:
        threshold: in units of each unit's RMS, at least 0.
        limit: examples kept on each process.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from legibility.scores import ActivationL0
        >>> score = ActivationL0()
        >>> score.update(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0], [0.0, 1.0]]))
        >>> score.compute().item()
        0.5
    """

    higher_is_better: bool | None = None

    def __init__(self, *, threshold: float = 0.0, limit: int = LIMIT, **kwargs: Any) -> None:
        super().__init__(("activations", "mask"), limit=limit, **kwargs)
        self.threshold = threshold

    def update(self, activations: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of activations, and which positions count."""
        self.keep({"activations": activations, "mask": mask})

    def compute(self) -> Tensor:
        """The share of units at work."""
        activations = self.needed("activations")
        found = activation_l0(activations, mask=self.gathered("mask"), threshold=self.threshold)
        return torch.tensor(found, dtype=torch.float64, device=activations.device)
