"""Metrics of one model: of tensors that are collected batch by batch, or of what is equal on all ranks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


def of_first_rank(stacked: Tensor) -> Tensor:
    """Reduces a state over ranks where all hold the same: what comes of weights."""
    return stacked[0]


class CollectedScore(Metric, ABC):
    """Of one model, the same on all ranks: batches of all ranks are gathered, and every rank computes the same.

    A final class names its `columns` and measures in `measured`. Don't use `forward`, which would score each batch on
    its own.

    Args:
        model: any module; it is no part of the metric's state.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable: bool | None = False
    full_state_update: bool | None = False

    columns: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._model = (model,)  # in a tuple, for a module would become a part of this one
        for column in self.columns:
            self.add_state(column, [], dist_reduce_fx="cat")

    @abstractmethod
    def measured(self, model: nn.Module, columns: Mapping[str, Tensor | None]) -> dict[str, float]:
        """The values by name, from everything that was collected."""

    def compute(self) -> dict[str, Tensor]:
        """Measures and names the values, float64 scalars."""
        columns = {column: self._gathered(column) for column in self.columns}
        if columns[self.columns[0]] is None:
            raise ValueError("`update` must have been given batches before `compute`, got none.")
        values = self.measured(self._model[0], columns)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)

    def _collect(self, **batch: Tensor | None) -> None:
        for column, tensor in batch.items():
            kept = getattr(self, column)
            if (tensor is None) != (len(kept) == 0) and self._update_count > 1:
                raise ValueError(f"`{column}` must be given on every update or on none.")
            if tensor is not None:
                kept.append(tensor.detach())

    def _gathered(self, column: str) -> Tensor | None:
        kept = getattr(self, column)
        # Nothing anywhere comes back as an empty tensor once ranks were gathered.
        tensor = dim_zero_cat(kept) if isinstance(kept, Tensor) or kept else None
        return None if tensor is None or tensor.numel() == 0 else tensor
