"""Dimension and guards of a layer's activations as a metric of sums."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from legibility.scores._inputs import check_floating, check_mask
from legibility.scores.representation._dimension import unbiased_participation


class Dimension(Metric):
    """`participation_ratio` (unbiased), `effective_rank`, `live_units` and `activation_rms` over all batches and ranks.

    `update(activations, mask=None)` takes floating `"*batch units"` and a bool `"*batch"`. `compute()` gives float64
    scalars under these names. None has a better direction: they tell a legible layer from a collapsed one.

    States are float64 sums (`units^2` numbers), so nothing depends on how batches and ranks were cut. A mean that
    exceeds the standard deviation ten thousand times costs the digits of the result; a unit whose mean exceeds it a
    million times counts as dead. Not trained on, unless a term uses activations' covariance or norm.

    Args:
        units: size of the last dimension.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        TypeError: if activations aren't floating point.
        ValueError: if shapes don't fit or values aren't finite; on `compute` with fewer than 4 positions.

    Example:
        >>> import torch
        >>> from legibility.scores import Dimension
        >>> score = Dimension(units=2)
        >>> score.update(torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)))
        >>> round(score.compute()["participation_ratio"].item(), 2)
        2.0
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0

    count: Tensor
    total: Tensor
    products: Tensor
    cubes: Tensor
    fourths: Tensor

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"`units` must be at least 1, got {units}.")
        self.units = units
        shapes = {"count": (), "total": (units,), "products": (units, units), "cubes": (units,), "fourths": ()}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, activations: Tensor, mask: Tensor | None = None) -> None:
        """Add one batch of activations, and which positions count."""
        check_floating(activations, "activations")
        if activations.ndim == 0 or activations.shape[-1] != self.units:
            raise ValueError(
                f"`activations` must have {self.units} units in its last dimension, got {tuple(activations.shape)}."
            )
        check_mask(mask, activations)
        rows = activations.reshape(-1, self.units) if mask is None else activations[mask]
        rows = rows.detach().to(torch.float64)
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("`activations` must be finite where `mask` is True.")
        squares = rows.square().sum(1)
        self.count = self.count + len(rows)
        self.total = self.total + rows.sum(0)
        self.products = self.products + rows.T @ rows
        self.cubes = self.cubes + rows.T @ squares
        self.fourths = self.fourths + squares.square().sum()

    def compute(self) -> dict[str, Tensor]:
        """The values by name."""
        samples = int(self.count)
        if samples < 4:
            raise ValueError(f"`update` must have been given at least 4 unmasked positions, got {samples}.")
        mean = self.total / samples
        mean_squares = self.products.diagonal() / samples
        variance = mean_squares - mean.square()
        # Below this share of the mean square the difference of the sums is rounding.
        live = variance > 1e-12 * mean_squares
        scatter = (self.products - samples * torch.outer(mean, mean)) * torch.outer(live, live)
        norm = mean.square().sum()
        # sum |x - m|^4, multiplied out
        fourths = (
            self.fourths
            - 4 * mean @ self.cubes
            + 2 * norm * self.products.trace()
            + 4 * mean @ self.products @ mean
            - 3 * samples * norm.square()
        )
        gram = scatter / (samples - 1)
        eigenvalues = torch.linalg.eigvalsh(scatter).clamp(min=0)
        total = eigenvalues.sum()
        rank = torch.special.entr(eigenvalues / total).sum().exp() if total > 0 else total + math.nan
        deviation = torch.where(live, variance, 0.0).clamp(min=0).sqrt()
        values = {
            "participation_ratio": total.new_tensor(
                unbiased_participation(gram.trace(), gram.square().sum(), fourths / (samples - 1), samples)
            ),
            "effective_rank": rank,
            "live_units": (deviation > 1e-3 * deviation.square().mean().sqrt()).sum(),
            "activation_rms": mean_squares.mean().sqrt(),
        }
        return {name: value.to(self.total) for name, value in values.items()}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)
