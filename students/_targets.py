"""The primary's side of an imitation: what it said, and what of it counts."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """One thing to imitate.

    Attributes:
        values: (..., units) in fp32, detached, 0 where `mask` is False.
        mask: bool (...), or None if all count.
    """

    values: Tensor
    mask: Tensor | None

    def count(self) -> Tensor:
        """Scalar: how many positions (or examples) count."""
        if self.mask is None:
            return self.values.new_full((), float(self.values.shape[:-1].numel()))
        return self.mask.sum().to(self.values.dtype)

    def rows(self) -> Tensor:
        """(rows, units): those that count."""
        return (self.values if self.mask is None else self.values[self.mask]).reshape(-1, self.values.shape[-1])

    def sum(self, values: Tensor) -> Tensor:
        """Scalar: the sum of `values` (...) where they count."""
        return values.sum() if self.mask is None else torch.where(self.mask, values, 0.0).sum()


def prepare(values: Tensor, per_position: bool, mask: Tensor | None) -> Target:
    """Detach, flatten per example unless `per_position`, and silence what `mask` doesn't count.

    Args:
        values: (batch, positions, units) or (batch, ...), floating.
        per_position: Whether units belong to positions.
        mask: bool (batch, positions) or (batch,). An example counts if any of its positions does.

    Raises:
        ValueError: For a mask of another kind.
    """
    rows = values.detach().float()
    rows = rows if per_position else rows.flatten(1)
    if mask is None:
        return Target(rows, None)
    if mask.dtype != torch.bool or mask.dim() not in (1, 2) or mask.shape[0] != rows.shape[0]:
        raise ValueError(
            f"`mask` must be bool (batch, positions) or (batch,), True where it counts, for values "
            f"{tuple(values.shape)}; got {mask.dtype} {tuple(mask.shape)}."
        )
    if not per_position:
        mask = mask if mask.dim() == 1 else mask.any(1)
    elif mask.dim() == 1:
        mask = mask.unsqueeze(1).expand(rows.shape[:2])
    if mask.shape != rows.shape[:-1]:
        raise ValueError(f"`mask` must be {tuple(rows.shape[:-1])}, one entry per position; got {tuple(mask.shape)}.")
    # Padding may hold NaN: zeros keep it out of the gradients too.
    return Target(torch.where(mask.unsqueeze(-1), rows, 0.0), mask)
