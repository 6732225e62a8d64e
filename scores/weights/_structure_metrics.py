"""Modularity and wiring of a model's weights as metrics: weights are equal on all ranks and measured once."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from legibility.scores.weights._canonical import Canonical
from legibility.scores.weights._modularity import relative_modularity
from legibility.scores.weights._wiring import wiring_cost


def _of_first_rank(stacked: Tensor) -> Tensor:
    return stacked[0]


class RelativeModularity(Metric):
    """`relative_modularity` as a metric (its card is there): of the model that the last `update` was given.

    `update(model)`; `compute()` gives float64 scalars `"value"`, `"q"`, `"q_null"`, `"q_null_spread"`, NaN before. The
    first rank's stand for all; a model whose weights are sharded must be gathered first.

    Args:
        nulls: how many shuffled copies.
        restarts: clusterings tried for each graph.
        seed: of shuffling and clustering.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from legibility.scores import RelativeModularity
        >>> score = RelativeModularity()
        >>> score.update(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
        >>> bool(score.compute()["value"] < 0.5)
        True
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = True
    full_state_update: bool | None = False

    names = ("value", "q", "q_null", "q_null_spread")
    values: Tensor

    def __init__(self, *, nulls: int = 3, restarts: int = 2, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, int] = {"nulls": nulls, "restarts": restarts, "seed": seed}
        none = torch.full((len(self.names),), math.nan, dtype=torch.float64)
        self.add_state("values", none, dist_reduce_fx=_of_first_rank)

    def update(self, model: nn.Module | Canonical) -> None:
        """Measure a model in place of the one before."""
        found = relative_modularity(model, **self.settings)
        self.values = self.values.new_tensor([float(getattr(found, name)) for name in self.names])

    def compute(self) -> dict[str, Tensor]:
        """The values by name."""
        return dict(zip(self.names, self.values.unbind(), strict=True))

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)


class RelativeWiringCost(Metric):
    """`wiring_cost` as a metric (its card is there): of the model that the last `update` was given.

    `update(model)`; `compute()` gives float64 scalars `"value"`, `"cost"`, `"null"`, `"null_spread"`, `"as_given"`, NaN before.
    The first rank's stand for all; a model whose weights are sharded must be gathered first.

    Args:
        nulls: how many shuffled copies.
        seed: of shuffling.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from legibility.scores import RelativeWiringCost
        >>> score = RelativeWiringCost()
        >>> score.update(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
        >>> bool(score.compute()["value"] > 0.8)
        True
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = False
    full_state_update: bool | None = False

    names = ("value", "cost", "null", "null_spread", "as_given")
    values: Tensor

    def __init__(self, *, nulls: int = 5, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, int] = {"nulls": nulls, "seed": seed}
        none = torch.full((len(self.names),), math.nan, dtype=torch.float64)
        self.add_state("values", none, dist_reduce_fx=_of_first_rank)

    def update(self, model: nn.Module | Canonical) -> None:
        """Measure a model in place of the one before."""
        found = wiring_cost(model, **self.settings)
        self.values = self.values.new_tensor([float(getattr(found, name)) for name in self.names])

    def compute(self) -> dict[str, Tensor]:
        """The values by name."""
        return dict(zip(self.names, self.values.unbind(), strict=True))

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)
