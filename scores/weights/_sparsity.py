"""How sparse weights are: exact zeros, active weights, Gini, dead units."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from legibility.scores._inputs import check_floating
from legibility.scores._of_model import of_first_rank
from legibility.scores.weights._spread import hoyer

ACTIVE = 1e-2
"""A weight counts as active above this absolute value."""


@dataclass(frozen=True)
class SparsityOfWeights:
    """What `weight_sparsity` measured.

    Attributes:
        zeros: share of weights that are exactly zero, 0 to 1, higher = sparser.
        active: share of weights with `|w| > 1e-2`, 0 to 1, lower = sparser.
        gini: mean over tensors of each one's Gini coefficient, weighted by its size, 0 to 1, higher = sparser.
        dead_units: number of units whose incoming weights are all exactly zero (rows of the first dimension).
        units: number of rows.
        weights: number of weights.
        hoyer: mean over tensors of Hoyer's measure, weighted by size, 0 to 1, higher = sparser; depends on tensors' sizes.
    """

    zeros: float
    active: float
    gini: float
    dead_units: int
    units: int
    weights: int
    hoyer: float = math.nan


def gini(values: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Gini coefficient of the absolute values: how unequally their sum is spread.

    With `|w|` sorted upwards as `w_1 <= ... <= w_n`: `G = sum_i (2 i - n - 1) w_i / (n sum_i w_i)`. Range 0 (all equal)
    to `1 - 1/n` (a single nonzero); `k` of `n` equal: `1 - k/n`; Gaussian `sqrt(2) - 1`; Laplace `1/2`. It doesn't
    depend on the scale of the whole tensor, nor on `n` at equal distribution.

    Args:
        values: any shape, floating point, at least one element.

    Returns:
        scalar, float64; NaN when all values are zero.

    Raises:
        TypeError: if `values` isn't floating point.
        ValueError: if it is empty or not finite.

    Example:
        >>> import torch
        >>> from legibility.scores import gini
        >>> gini(torch.tensor([0.0, 1.0, 3.0]))  # (-2*0 + 0*1 + 2*3) / (3*4)
        tensor(0.5000, dtype=torch.float64)

    Source: Hurley and Rickard, "Comparing measures of sparsity", 2009.
    """
    check_floating(values, "values")
    if values.numel() == 0 or not bool(torch.isfinite(values).all()):
        raise ValueError("`values` must hold at least one element, all of them finite.")
    # Sorted in its own precision, for a float64 copy of a large matrix is the slowest part; summed in float64.
    ordered = values.detach().abs().flatten().sort().values.to(torch.float64)
    count = ordered.numel()
    ranks = torch.arange(1 - count, count, 2, dtype=torch.float64, device=ordered.device)
    total = ordered.sum()
    return torch.where(total > 0, (ranks @ ordered) / (count * total), torch.nan)


def weight_sparsity(named_weights: Iterable[tuple[str, Tensor]]) -> SparsityOfWeights:
    """Measure how sparse the given weights are.

    Which tensors belong is the caller's choice: usually matrices (`ndim >= 2`), without biases, norms and embeddings,
    tied tensors once. Rows of the first dimension are the units (as in `nn.Linear` and `nn.ConvNd`; a transposed
    convolution has its inputs there).

    Card:
        Range and direction: shares in [0, 1]; zeros, Gini and Hoyer up = sparser, active down. Not by itself more
        interpretable.
        Cost: one sort of all weights. Control: a random-init model (Gini about .33 for uniform weights, .41 for Gaussian).
        Gamed by: rescaling. `active`, `gini` and `hoyer` look at weights, not at the function: scaling a ReLU unit's
        incoming weights up and its outgoing weights down leaves the function as it is and changes them; exact zeros and
        dead units don't change. Give `canonicalise(model).weights.items()`. The Gini is taken per tensor, so at least the
        scale of whole layers doesn't enter it.
        Trained on, where a sparsity term or a proximal step took part.

    If every weight is zero, the model is constant: all its weights are zeros and none is active, and the Gini and Hoyer's
    measure are NaN. A tensor of zeros among others is left out of both means.

    Args:
        named_weights: pairs of name and weight, as from `module.named_parameters()`; names appear in errors only.

    Returns:
        the measurements; for no tensor at all the shares and the Gini are NaN and the counts 0.

    Raises:
        TypeError: if a weight isn't floating point.
        ValueError: if a weight has fewer than 2 dimensions or isn't finite.

    Example:
        >>> import torch
        >>> from legibility.scores import weight_sparsity
        >>> found = weight_sparsity([("head.weight", torch.tensor([[0.0, 0.0], [0.0, 3.0]]))])
        >>> found.zeros, found.active, found.gini, found.dead_units
        (0.75, 0.25, 0.75, 1)

    Source: Hurley and Rickard, "Comparing measures of sparsity", 2009; Hoyer, 2004.
    """
    return _compute(_update(named_weights))


def _update(named_weights: Iterable[tuple[str, Tensor]]) -> Tensor:
    """Sums over tensors: zeros, active, Gini x size, their size, dead units, units, weights, Hoyer x size, their size."""
    sums = torch.zeros(9, dtype=torch.float64)
    for name, weight in named_weights:
        if not weight.is_floating_point():
            raise TypeError(f"`named_weights`: '{name}' must be a floating point tensor, got {weight.dtype}.")
        if weight.ndim < 2:
            raise ValueError(
                f"`named_weights`: '{name}' must have at least 2 dimensions, got shape {tuple(weight.shape)}: "
                "leave biases and norms out."
            )
        if weight.numel() == 0:
            continue
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"`named_weights`: '{name}' must be finite.")
        weight = weight.detach()
        spread = gini(weight).item()
        dead = (weight.flatten(1) == 0).all(1)
        known = not math.isnan(spread)
        other = hoyer(weight).item() if weight.numel() > 1 else math.nan
        sums += torch.tensor(
            [
                int((weight == 0).sum()),
                int((weight.abs() > ACTIVE).sum()),
                spread * weight.numel() if known else 0.0,
                weight.numel() if known else 0,
                int(dead.sum()),
                dead.numel(),
                weight.numel(),
                0.0 if math.isnan(other) else other * weight.numel(),
                0 if math.isnan(other) else weight.numel(),
            ],
            dtype=torch.float64,
        )
    return sums


def _compute(sums: Tensor) -> SparsityOfWeights:
    zeros, active, spread, spread_weights, dead, units, weights, other, other_weights = sums.tolist()
    return SparsityOfWeights(
        zeros=zeros / weights if weights else math.nan,
        active=active / weights if weights else math.nan,
        gini=spread / spread_weights if spread_weights else math.nan,
        dead_units=int(dead),
        units=int(units),
        weights=int(weights),
        hoyer=other / other_weights if other_weights else math.nan,
    )


class WeightSparsity(Metric):
    """`weight_sparsity` as a metric: `update(named_weights)` may be called once per part of the model.

    `compute()` gives `{"zeros", "active", "gini", "dead_units", "hoyer"}` as float64 scalars (see `SparsityOfWeights`).
    Weights are equal on all ranks, so the first rank's measurements stand for all and nothing is summed over ranks: a
    model whose weights are sharded must be gathered first.

    No direction is set, for the five values point different ways.

    Example:
        >>> import torch
        >>> from legibility.scores import WeightSparsity
        >>> score = WeightSparsity()
        >>> score.update([("head.weight", torch.eye(4))])
        >>> round(score.compute()["zeros"].item(), 2)
        0.75
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0

    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(9, dtype=torch.float64), dist_reduce_fx=of_first_rank)

    def update(self, named_weights: Iterable[tuple[str, Tensor]]) -> None:
        """Add some of the model's weights, as pairs of name and tensor."""
        self.sums = self.sums + _update(named_weights).to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """The measurements by name."""
        found = _compute(self.sums)
        values = {"zeros": found.zeros, "active": found.active, "gini": found.gini, "dead_units": found.dead_units}
        values |= {"hoyer": found.hoyer}
        device = self.sums.device
        return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in values.items()}

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)
