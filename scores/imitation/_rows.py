"""What estimators read: rows of numbers, and of tokens the last few at each position."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from legibility.scores._optional import optional
from legibility.scores.imitation._queries import Queries

Array = NDArray[Any]
ESTIMATORS = "A family without gradients"
"""As they are called where a library of theirs is missing."""
WINDOW = 8
"""So many tokens are read at each position, its own and those before it: as many as `MLPStudent` sees."""
MOST_ANSWERS = 256
"""For tokens, as many as there are bytes: a kernel machine takes a fit for each pair of them."""


def why_unread(queries: Queries) -> str | None:
    """Why estimators can't read these queries; None if they can."""
    if queries.inputs.is_floating_point():
        return None if queries.logits.ndim == 2 else "estimators give one answer per row, not one per position"
    if queries.inputs.shape != queries.logits.shape[:-1]:
        return "estimators read tokens only where each has an answer of its own"
    if queries.logits.shape[-1] > MOST_ANSWERS:
        return f"estimators choose among at most {MOST_ANSWERS} answers to a token, not {queries.logits.shape[-1]}"
    return None


def counted_rows(queries: Queries, like: int | None = None) -> Any:
    """One row for each position that counts, in order: an array, or of tokens a sparse matrix.

    Numbers are flattened and standardised by feature, over the first `like` queries (None: all); those at positions that
    aren't to be read are 0 before that.
    """
    counted = queries.counted.cpu().numpy()
    if not queries.inputs.is_floating_point():
        return windows(queries.inputs)[counted.ravel()]
    inputs = queries.inputs
    if queries.positions_to_read is not None:
        shape = (*queries.positions_to_read.shape, *[1] * (inputs.ndim - 2))
        inputs = inputs.where(queries.positions_to_read.to(inputs.device).view(shape), 0.0)
    return _standardised(inputs, inputs[:like])[counted]


def windows(ids: Tensor) -> Any:
    """The last `WINDOW` tokens at each position of `(N, T)` ids, `(N T, WINDOW distinct tokens)`, sparse.

    The token `a` places back is one-hot times `2^(-a/2)`; what stands before the first, and negative ids (padding), is
    one token more. In squared distances a token weighs more than all before it together, so that the nearest rows are
    those with the longest common ending, as an n-gram model backs off. One factor for all brings the mean variance to 1.
    """
    sparse = optional("scipy.sparse", ESTIMATORS)
    known, codes = torch.unique(
        functional.pad(ids.cpu().long().clamp(min=-1), (WINDOW - 1, 0), value=-1), return_inverse=True
    )
    back = torch.arange(WINDOW)
    columns = codes.unfold(1, WINDOW, 1).flip(-1).reshape(-1, WINDOW) + back * len(known)
    values = torch.exp2(-back.double() / 2).expand_as(columns)
    ends = torch.arange(len(columns) + 1) * WINDOW
    rows = sparse.csr_matrix(
        tuple(part.flatten().numpy() for part in (values, columns, ends)), shape=(len(columns), WINDOW * len(known))
    )
    variance = float((rows.power(2).mean(0) - np.square(rows.mean(0))).mean())
    return rows / np.sqrt(variance) if variance > 0 else rows


def _standardised(inputs: Tensor, like: Tensor) -> Array:
    """Rows of numbers with mean 0 and variance 1 by feature, of `like`."""
    flat, base = (t.detach().cpu().double().flatten(1) for t in (inputs, like))
    spread = base.std(0, correction=0)
    found: Array = ((flat - base.mean(0)) / torch.where(spread > 0, spread, 1.0)).numpy()
    return found
