"""How much of a dimension each feature has for itself, when a layer holds more features than units."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from legibility.scores._inputs import check_floating
from legibility.scores._of_model import of_first_rank

REPRESENTED = 0.1
"""A feature counts as represented if its vector is longer than this share of the longest."""


def feature_dimensionality(weight: Float[Tensor, "features units"]) -> Float[Tensor, " features"]:
    r"""The share of a dimension that each feature has: `D_i = |W_i|^2 / sum_j (w_i . W_j)^2`, `w_i = W_i / |W_i|`.

    1 for a feature orthogonal to all others, 3/4 in a tetrahedron, 2/3 in a triangle, 1/2 in an antipodal pair, 2/5 in a
    pentagon, 1/3 in a hexagon; 0 for a feature without a vector. The sum over features is at most the number of units.

    Card:
        Range and direction: [0, 1], higher = the feature doesn't share its dimension (less superposition).
        Cost: `features^2 * units`. Control: a random-init matrix of this shape; Gaussian rows of `n` features in `m`
        units have about `m / (m + n - 1)`, which is not small: read the difference.
        Gamed by: dropping features, so read it beside the share that is represented. Not by one scale for all
        vectors, nor by rotations of the units. Scaling single units or features changes it: bring weights of a ReLU
        layer to a canonical form first.
        Not trained on, unless a term penalises the overlap of these weights.

    Args:
        weight: one vector for each feature: columns of a layer that writes features to units (`linear.weight.T`).

    Returns:
        `D_i`, float64.

    Raises:
        TypeError: if `weight` isn't floating point.
        ValueError: if it isn't a matrix or isn't finite.

    Example:
        >>> import torch
        >>> from legibility.scores import feature_dimensionality
        >>> feature_dimensionality(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
        tensor([0.5000, 0.5000, 1.0000, 0.0000], dtype=torch.float64)

    Source: Elhage et al., "Toy models of superposition", 2022.
    """
    check_floating(weight, "weight")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"`weight` must be (features, units), got {tuple(weight.shape)}.")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("`weight` must be finite.")
    exact = weight.detach().to(torch.float64)
    # One scale for all changes nothing and keeps fourth powers from under- and overflow.
    exact = exact / exact.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    overlaps = (exact @ exact.T).square().sum(1)
    norms = exact.square().sum(1)
    # |W|^2 / sum (w . W_j)^2 = |W|^4 / sum (W . W_j)^2
    return torch.where(norms > 0, norms.square() / torch.where(norms > 0, overlaps, 1.0), 0.0)


class FeatureDimensionality(Metric):
    """Mean `feature_dimensionality` of the represented features of one or more matrices (its card is there).

    `update(weight)` once for each matrix. `compute()` gives float64 scalars: `"dimensionality"`, the mean over features
    whose vector is longer than 0.1 of the longest in its matrix, NaN if there are none; `"represented"`, their share;
    `"random"`, the first for Gaussian vectors of the same shape and a fixed seed: the control; `"excess"`,
    `(dimensionality - random) / (1 - random)`, 0 for an untrained matrix, 1 for orthogonal features: **the directed
    one**, up. The others must not be compared without their control.

    Weights are equal on all ranks, so the first rank's stand for all and nothing is summed over ranks.

    Example:
        >>> import torch
        >>> from legibility.scores import FeatureDimensionality
        >>> score = FeatureDimensionality()
        >>> score.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.01], [0.0, 0.0]]))
        >>> values = score.compute()
        >>> values["dimensionality"].item(), values["represented"].item()
        (0.5, 0.5)
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = True
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Of represented features: sum, count; of random ones: sum, count; features.
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx=of_first_rank)

    def update(self, weight: Tensor) -> None:
        """Add a matrix with a row for each feature."""
        shares, represented = feature_dimensionality(weight), _represented(weight)
        random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        by_chance, kept = feature_dimensionality(random), _represented(random)
        found = [shares[represented].sum(), represented.sum(), by_chance[kept].sum(), kept.sum()]
        values = [*(float(value) for value in found), float(len(weight))]
        self.sums = self.sums + torch.tensor(values, dtype=torch.float64).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """The values by name; 0 / 0 is NaN."""
        total, count, by_chance, kept, features = self.sums
        found, chance = total / count, by_chance / kept
        excess = torch.where(chance < 1, (found - chance) / (1 - chance), torch.nan)
        return {"dimensionality": found, "represented": count / features, "random": chance, "excess": excess}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)


def _represented(weight: Tensor) -> Tensor:
    length = weight.detach().to(torch.float64).norm(dim=1)
    return torch.logical_and(length > REPRESENTED * length.max(), length > 0)
