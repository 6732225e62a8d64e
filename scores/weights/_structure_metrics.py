"""Modularity and wiring of a model's weights as metrics: weights are equal on all ranks and measured once."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from legibility.scores._of_model import of_first_rank
from legibility.scores.weights._canonical import Canonical
from legibility.scores.weights._modularity import Modularity, relative_modularity
from legibility.scores.weights._wiring import WiringCost, wiring_cost


class _OfWeights(Metric, ABC):
    """Keeps what was found in the last model. A final class names the values and measures in `measured`."""

    is_differentiable: bool | None = False
    full_state_update: bool | None = False

    names: tuple[str, ...] = ()
    values: Tensor

    def __init__(self, settings: dict[str, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        none = torch.full((len(self.names),), math.nan, dtype=torch.float64)
        self.add_state("values", none, dist_reduce_fx=of_first_rank)

    @abstractmethod
    def measured(self, model: nn.Module | Canonical) -> object:
        """What holds the values as attributes."""

    def update(self, model: nn.Module | Canonical) -> None:
        """Measure a model in place of the one before."""
        found = self.measured(model)
        self.values = self.values.new_tensor([float(getattr(found, name)) for name in self.names])

    def compute(self) -> dict[str, Tensor]:
        """The values by name."""
        return dict(zip(self.names, self.values.unbind(), strict=True))

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)


class RelativeModularity(_OfWeights):
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

    higher_is_better: bool | None = True

    names = ("value", "q", "q_null", "q_null_spread")

    def __init__(self, *, nulls: int = 3, restarts: int = 2, seed: int = 0, **kwargs: Any) -> None:
        super().__init__({"nulls": nulls, "restarts": restarts, "seed": seed}, **kwargs)

    def measured(self, model: nn.Module | Canonical) -> Modularity:
        """The modularity beside its null."""
        return relative_modularity(model, **self.settings)


class RelativeWiringCost(_OfWeights):
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

    higher_is_better: bool | None = False

    names = ("value", "cost", "null", "null_spread", "as_given")

    def __init__(self, *, nulls: int = 5, seed: int = 0, **kwargs: Any) -> None:
        super().__init__({"nulls": nulls, "seed": seed}, **kwargs)

    def measured(self, model: nn.Module | Canonical) -> WiringCost:
        """The cost beside its null."""
        return wiring_cost(model, **self.settings)
