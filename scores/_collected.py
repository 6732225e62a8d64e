"""The base of metrics that need all samples at once: they are kept up to a limit, on each rank."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from legibility.scores._inputs import check_floating

LIMIT = 4096


class Collected(Metric, ABC):
    """A metric that keeps the first `limit` examples of each process and computes from those of all, rank after rank.

    What isn't a sum (a fit, an intervention) can't be reduced to one; the limit is what bounds the memory instead. The
    result on several ranks equals that of one process which was given the ranks' examples one rank after the other.
    Examples beyond the limit are dropped and counted in `dropped`. A `DistributedSampler` repeats examples to fill its
    last batch: use one without padding.

    Args:
        fields: names of what each update brings; the states.
        limit: number of examples, at least 1.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable: bool | None = False
    full_state_update: bool | None = False

    def __init__(self, fields: Sequence[str], *, limit: int = LIMIT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if limit < 1:
            raise ValueError(f"`limit` must be at least 1, got {limit}.")
        self.fields = tuple(fields)
        self.limit = limit
        self.dropped: Tensor
        self.add_state("dropped", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for field in self.fields:
            self.add_state(field, [], dist_reduce_fx="cat")

    def keep(self, given: dict[str, Tensor | None]) -> None:
        """Add one batch: a tensor for each field, or None for a field that is never given."""
        kept: list[Tensor] = getattr(self, self.fields[0])
        examples = sum(len(tensor) for tensor in kept)
        first = given[self.fields[0]]
        assert first is not None
        check_floating(first, self.fields[0])
        room = min(self.limit - examples, len(first))
        self.dropped = self.dropped + (len(first) - room)
        for field in self.fields:
            tensor, before = given[field], getattr(self, field)
            if (tensor is None) != (not before) and kept and field != self.fields[0]:
                raise ValueError(f"`{field}` must be given on every update or on none.")
            if tensor is None:
                continue
            if tensor.shape[:1] != first.shape[:1]:
                raise ValueError(
                    f"`{field}` must hold the {len(first)} examples of `{self.fields[0]}`, got {tuple(tensor.shape)}."
                )
            if before and tensor.shape[1:] != before[0].shape[1:]:
                raise ValueError(
                    f"`{field}` must have the same shape in every batch, {tuple(before[0].shape[1:])} after the "
                    f"examples, got {tuple(tensor.shape[1:])}: pad, and set `mask` to False there."
                )
        for field in self.fields:
            tensor = given[field]
            if tensor is not None and room > 0:
                getattr(self, field).append(tensor.detach()[:room].clone())

    def gathered(self, field: str) -> Tensor | None:
        """All that was kept of a field, None if it was never given."""
        kept = getattr(self, field)
        # Nothing anywhere comes back as an empty tensor once ranks were gathered.
        tensor = dim_zero_cat(kept) if isinstance(kept, Tensor) or kept else None
        return None if tensor is None or tensor.numel() == 0 else tensor

    def needed(self, field: str) -> Tensor:
        """All that was kept of a field.

        Raises:
            ValueError: nothing was.
        """
        tensor = self.gathered(field)
        if tensor is None:
            raise ValueError(f"`update` must have been given `{field}` before `compute`, got none.")
        return tensor

    @abstractmethod
    def compute(self) -> Any:
        """The score from everything that was kept."""

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)


def named(values: dict[str, float], device: torch.device) -> dict[str, Tensor]:
    """Float64 scalars, as metrics return them."""
    return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in values.items()}
