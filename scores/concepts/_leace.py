"""Least-squares concept erasure in closed form, with the whitening shared by many erasers of the same activations."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from legibility.scores.concepts._labelled import as_classes, checked_mask

_RANK = 1e-10  # relative to the largest: directions of float32 activations below are rounding


@dataclass(frozen=True, eq=False)
class Eraser:
    """The affine map `h -> h - (h - mean) right^T left^T`, which leaves nothing of a concept to any linear probe.

    Attributes:
        mean: of the activations, `(units,)` float64, like the others.
        left: `(units, rank)`, what is taken out.
        right: `(rank, units)`, where it is read; `right @ left` is the identity.
    """

    mean: Float[Tensor, " units"]
    left: Float[Tensor, "units rank"]
    right: Float[Tensor, "rank units"]

    def erase(self, activations: Float[Tensor, "*batch units"]) -> Float[Tensor, "*batch units"]:
        """The activations without the concept, in their own dtype."""
        exact = activations.to(self.mean)
        return (exact - (exact - self.mean) @ self.right.T @ self.left.T).to(activations)

    def exchange(
        self, activations: Float[Tensor, "*batch units"], donors: Float[Tensor, "*batch units"]
    ) -> Float[Tensor, "*batch units"]:
        """The activations with the donors' concept in place of their own, in their own dtype."""
        exact = activations.to(self.mean)
        return (exact + (donors.to(self.mean) - exact) @ self.right.T @ self.left.T).to(activations)


@dataclass(frozen=True, eq=False)
class Whitened:
    """Activations in coordinates with unit covariance, kept for fitting erasers.

    Attributes:
        mean: `(units,)`.
        white: `(positions, rank)`.
        whiten: `(units, rank)`, `white = (h - mean) whiten`.
        colour: `(rank, units)`, back again.
    """

    mean: Tensor
    white: Tensor
    whiten: Tensor
    colour: Tensor

    @classmethod
    def of(cls, activations: Float[Tensor, "positions units"]) -> "Whitened":
        """Units are standardised first, so that which directions count as live doesn't depend on their scales."""
        exact = activations.to(torch.float64)
        mean = exact.mean(0)
        centred = exact - mean
        deviation = centred.square().mean(0).sqrt()
        # A constant unit's deviation is rounding of its mean.
        live = deviation > 1e-7 * exact.square().mean(0).sqrt()
        scale = torch.where(live, deviation, 1.0)
        standard = torch.where(live, centred / scale, 0.0)
        values, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))
        kept = values > _RANK * values[-1].clamp(min=torch.finfo(torch.float64).tiny)
        values, vectors = values[kept], vectors[:, kept]
        whiten = torch.where(live, 1 / scale, 0.0).unsqueeze(1) * vectors / values.sqrt()
        # A dead unit stays exactly as it is.
        return cls(mean, centred @ whiten, whiten, (vectors * values.sqrt()).T * torch.where(live, scale, 0.0))

    def correlated(self, labels: Int[Tensor, " positions"], classes: int) -> Float[Tensor, "rank directions"]:
        """An orthonormal basis, in white coordinates, of all that a linear probe for the labels could read."""
        indicator = torch.nn.functional.one_hot(labels, classes).to(self.white)
        cross = self.white.T @ (indicator - indicator.mean(0)) / len(indicator)
        left, sizes, _ = torch.linalg.svd(cross, full_matrices=False)
        # Both sides are at most 1, and one-hot columns are linearly dependent.
        basis: Tensor = left[:, sizes > 1e-9]
        return basis

    def eraser(self, labels: Int[Tensor, " positions"], classes: int) -> Eraser:
        """The eraser of a concept with these labels."""
        basis = self.correlated(labels, classes)
        return Eraser(self.mean, self.colour.T @ basis, (self.whiten @ basis).T)

    def explained(self, labels: Int[Tensor, " positions"], classes: int, without: Tensor | None = None) -> float:
        """Share of the labels' variance that is linear in the activations (R^2), if need be without some directions."""
        indicator = torch.nn.functional.one_hot(labels, classes).to(self.white)
        indicator = indicator - indicator.mean(0)
        cross = self.white.T @ indicator / len(indicator)
        if without is not None:
            cross = cross - without @ (without.T @ cross)
        total = indicator.square().sum() / len(indicator)
        return float(cross.square().sum() / total) if total > 0 else 0.0


def leace_eraser(activations: Float[Tensor, "positions units"], labels: Int[Tensor, " positions"]) -> Eraser:
    r"""Fits the least change of activations after which no linear probe does better than a constant (LEACE).

        r(h) = h - A (h - mean),   A = B (B^T S^+ B)^+ B^T S^+

    `S` is the covariance of `h` and `B` its cross-covariance with the one-hot labels. Among all affine maps with that
    guarantee it moves the activations least in mean square, whatever positive definite norm measures it; rescaling or
    rotating units therefore changes nothing. Unlike the `concept-erasure` library it has no threshold for weak
    correlations, so labels that are permuted are erased as thoroughly as real ones.

    Args:
        activations: floating point, at least 64 positions.
        labels: integers >= 0, the concept's value at each position.

    Returns:
        the eraser, float64.

    Raises:
        TypeError: if `activations` isn't floating point or `labels` isn't an integer tensor.
        ValueError: if shapes don't fit, there are fewer than 64 positions, or values aren't finite.

    Example:
        >>> import torch
        >>> from legibility.scores import leace_eraser
        >>> h = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> concept = (h[:, 0] > 0).long()
        >>> erased = leace_eraser(h, concept).erase(h)
        >>> bool(torch.allclose(erased[concept == 0].mean(0), erased[concept == 1].mean(0), atol=1e-6))
        True

    Source: Belrose et al., "LEACE: Perfect linear concept erasure in closed form", 2023.
    """
    if activations.ndim != 2 or labels.ndim != 1:
        raise ValueError(
            "`activations` must be (positions, units) and `labels` (positions,), got "
            f"{tuple(activations.shape)} and {tuple(labels.shape)}."
        )
    mask = checked_mask(activations, labels.unsqueeze(1), None)
    columns, (classes,) = as_classes(labels.unsqueeze(1)[mask])
    return Whitened.of(activations[mask].detach()).eraser(columns[:, 0], classes)
