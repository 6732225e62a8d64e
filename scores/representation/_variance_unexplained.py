"""Streaming fraction of variance unexplained of predicted activations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from legibility.scores._inputs import check_floating, check_mask, check_same_shape


class FractionOfVarianceUnexplained(Metric):
    r"""How much of each unit's variance a student fails to predict: `mean (h - g)^2 / var(h)`, that is `1 - R^2`.

    `h` are the primary's activations at a tap, `g` the student's prediction of them; mean and population variance of a
    unit are taken over all positions of all batches and ranks, so the value doesn't depend on how they were cut.

    Card:
        Range and direction: `[0, inf)`, lower = better predicted, 1 = no better than the unit's mean. A unit without variance
        is dead: NaN per unit, left out of the mean over units; if all are dead the mean is NaN.
        Cost: none beyond the activations. Controls: `patch_through_kl` beside it, a random-init primary, `live_units`.
        Gamed by: inflating a few easy directions, which lowers this score while `patch_through_kl` rises; units that die.
        Never read it alone.
        Trained on, where the hidden-state term is in the loss.

    `update(primary, student, mask=None)` takes floating `"*batch units"` twice and a bool `"*batch"`. States are
    float64 sums: a unit whose mean exceeds its standard deviation a million times counts as dead.
    The loss `legibility.losses.fraction_of_variance_unexplained` is the same quantity for one batch.

    Args:
        units: size of the last dimension.
        per_unit: return all units (NaN for dead ones) instead of the mean over the live ones.

    Raises:
        TypeError: if an activation isn't floating point.
        ValueError: if shapes don't fit or `units` isn't positive.

    Example:
        >>> import torch
        >>> from legibility.scores import FractionOfVarianceUnexplained
        >>> score = FractionOfVarianceUnexplained(units=1)
        >>> primary = torch.tensor([[0.0], [2.0], [4.0]])  # variance 8/3
        >>> score.update(primary, primary + 1.0)           # squared error 1, so 3/8
        >>> score.compute()
        tensor(0.3750, dtype=torch.float64)

    Source: 1 - R^2 by unit.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = False
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0

    count: Tensor
    total: Tensor
    squares: Tensor
    errors: Tensor

    def __init__(self, units: int, *, per_unit: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"`units` must be at least 1, got {units}.")
        self.units = units
        self.per_unit = per_unit
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("total", "squares", "errors"):
            self.add_state(name, torch.zeros(units, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, primary: Tensor, student: Tensor, mask: Tensor | None = None) -> None:
        """Add one batch of activations, what was predicted for them, and which positions count."""
        check_floating(primary, "primary")
        check_floating(student, "student")
        if primary.ndim == 0 or primary.shape[-1] != self.units:
            raise ValueError(
                f"`primary` must have {self.units} units in its last dimension, got {tuple(primary.shape)}."
            )
        check_same_shape(student, primary, "student", "primary")
        check_mask(mask, primary)
        if mask is None:
            primary, student = primary.reshape(-1, self.units), student.reshape(-1, self.units)
        else:
            primary, student = primary[mask], student[mask]
        exact = primary.detach().to(torch.float64)
        error = exact - student.detach().to(torch.float64)
        self.count = self.count + exact.shape[0]
        self.total = self.total + exact.sum(0)
        self.squares = self.squares + exact.square().sum(0)
        self.errors = self.errors + error.square().sum(0)

    def compute(self) -> Tensor:
        """The mean over live units, or all units."""
        mean_square = self.squares / self.count
        variance = mean_square - (self.total / self.count).square()
        # Below this share of the mean square the difference of the sums is rounding.
        dead = ~(variance > 1e-12 * mean_square)
        unexplained = torch.where(dead, torch.nan, self.errors / self.count / variance)
        return unexplained if self.per_unit else unexplained.nanmean()

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one value or a list of them (needs matplotlib)."""
        return self._plot(val, ax)
