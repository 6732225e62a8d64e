"""What estimators read: rows of numbers."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from legibility.scores.imitation._queries import Queries

Array = NDArray[Any]


def why_unread(queries: Queries) -> str | None:
    """Why estimators can't read these queries; None if they can."""
    if not queries.inputs.is_floating_point():
        return "estimators read rows of numbers, not tokens"
    if queries.logits.ndim != 2:
        return "estimators give one answer per row, not one per position"
    return None


def counted_rows(queries: Queries, like: int | None = None) -> Array:
    """One row for each query that counts, in order.

    Inputs are flattened and standardised by feature, over the first `like` queries (None: all); those at positions that
    aren't to be read are 0 before that.
    """
    inputs = queries.inputs
    if queries.positions_to_read is not None:
        shape = (*queries.positions_to_read.shape, *[1] * (inputs.ndim - 2))
        inputs = inputs.where(queries.positions_to_read.to(inputs.device).view(shape), 0.0)
    return _standardised(inputs, inputs[:like])[queries.counted.cpu().numpy()]


def _standardised(inputs: Tensor, like: Tensor) -> Array:
    """Rows of numbers with mean 0 and variance 1 by feature, of `like`."""
    flat, base = (t.detach().cpu().double().flatten(1) for t in (inputs, like))
    spread = base.std(0, correction=0)
    found: Array = ((flat - base.mean(0)) / torch.where(spread > 0, spread, 1.0)).numpy()
    return found
