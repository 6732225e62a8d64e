"""What scores of concepts demand: activations, and for each position the value of each concept."""

import torch
from torch import Tensor

from legibility.scores._inputs import check_floating, check_mask

LEAST_POSITIONS = 64
"""Fewer positions leave blocks too small to fit a probe."""


def checked_mask(activations: Tensor, concepts: Tensor, mask: Tensor | None) -> Tensor:
    """The positions that count, after checking everything.

    Raises:
        TypeError: if `activations` isn't floating point or `concepts` isn't an integer tensor.
        ValueError: if shapes don't fit, there are fewer than 64 positions, values aren't finite, or labels negative.
    """
    check_floating(activations, "activations")
    if activations.ndim < 2 or activations.shape[-1] == 0:
        raise ValueError(f"`activations` must be shaped (N, ..., units), got {tuple(activations.shape)}.")
    if concepts.is_floating_point() or concepts.is_complex():
        raise TypeError(f"`concepts` must be an integer or bool tensor of concept values, got {concepts.dtype}.")
    if concepts.shape[:-1] != activations.shape[:-1] or concepts.ndim < 2 or concepts.shape[-1] == 0:
        raise ValueError(
            f"`concepts` must be shaped {(*activations.shape[:-1], 'concepts')} to label every position of "
            f"`activations`, got {tuple(concepts.shape)}; one concept is a last dimension of 1."
        )
    check_mask(mask, activations)
    if mask is None:
        mask = torch.ones(activations.shape[:-1], dtype=torch.bool, device=activations.device)
    positions = int(mask.sum())
    if positions < LEAST_POSITIONS:
        raise ValueError(f"`activations` must hold at least {LEAST_POSITIONS} unmasked positions, got {positions}.")
    if not bool(torch.isfinite(activations[mask]).all()):
        raise ValueError("`activations` must be finite where `mask` is True.")
    if int(concepts[mask].min()) < 0:
        raise ValueError("`concepts` must be >= 0 where `mask` is True: set `mask` to False where there is no label.")
    return mask


def as_classes(concepts: Tensor) -> tuple[Tensor, list[int]]:
    """Each concept's values renumbered 0, 1, ... without gaps, and how many there are: `(positions, concepts)`."""
    columns, classes = [], []
    for column in concepts.long().unbind(1):
        values, renumbered = torch.unique(column, return_inverse=True)
        columns.append(renumbered)
        classes.append(len(values))
    return torch.stack(columns, 1), classes


def permuted(columns: Tensor, generator: torch.Generator) -> Tensor:
    """The same labels given to other positions; all columns move together, on the device of `columns`."""
    return columns[torch.randperm(len(columns), generator=generator).to(columns.device)]
