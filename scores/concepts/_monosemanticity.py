"""How much of each unit is one concept, and how many concepts have a unit: selectivity, coverage, completeness."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores.concepts._disentanglement import dci_disentanglement
from legibility.scores.concepts._labelled import as_classes, checked_mask, permuted
from legibility.scores.concepts._linear_probe import standardised

COVERED = 0.5
"""A concept is covered if it explains this share of the variance of some unit, and more of it than other concepts do."""


@dataclass(frozen=True, eq=False)
class Monosemanticity:
    """What single units say about concepts. NaN where it can't be measured.

    Attributes:
        selectivity: mean over live units of the variance share that the unit's best concept explains, up.
        permuted_selectivity: the same with permuted labels, the control: near 0.
        coverage: share of the concepts that are the best of a unit and explain half of it, up: duplicates don't count.
        completeness: DCI completeness of the explained shares, up: concepts are spoken of by few units each.
        live: number of units that vary.
        explained: `(units, concepts)`, the shares; 0 for dead units.
        reason: why scores are NaN; empty otherwise.
    """

    selectivity: float
    permuted_selectivity: float
    coverage: float
    completeness: float
    live: int
    explained: Float[Tensor, "units concepts"]
    reason: str = ""


def monosemanticity(
    activations: Float[Tensor, "*batch units"],
    concepts: Int[Tensor, "*batch concepts"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    permutations: int = 20,
    seed: int = 0,
) -> Monosemanticity:
    r"""Selectivity, coverage and completeness from the variance of each unit that each concept explains.

        e_uc = max(0, 1 - (n - 1) / (n - K) * sum_k sum_{i in k} (h_iu - mean_ku)^2 / sum_i (h_iu - mean_u)^2)

    the correlation ratio of unit u by the K values of concept c, corrected for their number (epsilon squared).
    Selectivity is `mean_u max_c e_uc`; coverage counts the concepts that are some unit's best with `e_uc >= 1/2`.

    Card:
        Range and direction: [0, 1], higher = single units mean single concepts. NaN if no unit varies.
        Cost: `positions * units * values` of all concepts, once more for each permutation.
        Controls: permuted labels (inside). Measure a random-init network beside it, and a rotation of the layer.
        Gamed by: duplicated units, which raise selectivity but not coverage; killing all units but a few pure ones,
        which coverage sees; exclusive concepts (one-hot), of which one unit can mean one at most 1/2 or so of the time.
        Not by rescaled or shifted units, nor by temperature.
        Not trained on, unless concepts or decorrelation of units took part in the loss.

    Args:
        activations: the layer, `(N, ..., units)`.
        concepts: integers >= 0, a value of each concept for every position.
        mask: positions that count; None means all.
        permutations: of the control, at least 1.
        seed: of the permutations. The global random state isn't used.

    Returns:
        the findings.

    Raises:
        TypeError: if a tensor has the wrong kind of numbers.
        ValueError: if shapes don't fit, positions are too few, or values aren't finite.

    Example:
        >>> import torch
        >>> from legibility.scores import monosemanticity
        >>> signs = torch.randint(2, (512, 2), generator=torch.Generator().manual_seed(0))
        >>> mixed = torch.stack([signs[:, 0], signs[:, 0] + signs[:, 1]], 1).float()
        >>> found = monosemanticity(mixed, signs)
        >>> round(found.selectivity, 2), found.coverage  # the second unit is half of each: its best has a little more
        (0.76, 1.0)

    Source: epsilon squared: Kelley, "An unbiased correlation ratio measure", 1935; completeness: Eastwood and Williams,
    2018; coverage as a guard against duplicates is ours.
    """
    if permutations < 1:
        raise ValueError(f"`permutations` must be at least 1, got {permutations}.")
    mask = checked_mask(activations, concepts, mask)
    rows = standardised(activations.detach()[mask])
    labels, classes = as_classes(concepts[mask])
    live = rows.square().sum(0) > 0
    explained = _explained(rows, labels, classes)
    if not bool(live.any()):
        return Monosemanticity(math.nan, math.nan, math.nan, math.nan, 0, explained, "no unit of the layer varies")
    generator = torch.Generator().manual_seed(seed)
    nulls = [_explained(rows, permuted(labels, generator), classes)[live].amax(1).mean() for _ in range(permutations)]
    share, best = explained.max(1)
    covered = best[live & (share >= COVERED)].unique().numel()  # type: ignore[no-untyped-call]
    return Monosemanticity(
        selectivity=float(share[live].mean()),
        permuted_selectivity=float(torch.stack(nulls).mean()),
        coverage=covered / len(classes),
        completeness=dci_disentanglement(explained[live].T)[0] if int(live.sum()) > 1 else math.nan,
        live=int(live.sum()),
        explained=explained,
    )


def _explained(rows: Tensor, labels: Tensor, classes: list[int]) -> Tensor:
    """Epsilon squared of each standardised unit by each concept."""
    count = len(rows)
    total = rows.square().sum(0)
    found = []
    for c, own in enumerate(classes):
        indicator = torch.nn.functional.one_hot(labels[:, c], own).to(rows)
        between = ((indicator.T @ rows).square() / indicator.sum(0).unsqueeze(1)).sum(0)
        within = total - between
        if own < 2 or own >= count:
            found.append(torch.zeros_like(total))
            continue
        ratio = 1 - (count - 1) / (count - own) * within / total.clamp(min=torch.finfo(total.dtype).tiny)
        found.append(torch.where(total > 0, ratio, 0.0).clamp(min=0))
    return torch.stack(found, 1)


class MonosemanticUnits(Collected):
    """`monosemanticity` over everything that `update` was given (its card is there), ranks one after the other.

    `update(activations, concepts, mask=None)`; `compute()` gives float64 scalars: `"selectivity"`,
    `"permuted_selectivity"`, `"coverage"`, `"completeness"`, `"live"`. `findings()` gives the `Monosemanticity`. Don't use
    `forward`, which would score each batch on its own.

    Args:
        permutations: of the control.
        seed: of the permutations.
        limit: examples kept on each process; bounds the state at `limit` times one example's activations.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `monosemanticity`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import MonosemanticUnits
        >>> score = MonosemanticUnits()
        >>> signs = torch.randint(2, (512, 3), generator=torch.Generator().manual_seed(0))
        >>> score.update(signs.float(), signs)
        >>> round(score.compute()["selectivity"].item(), 2)
        1.0
    """

    higher_is_better: bool | None = True

    def __init__(self, *, permutations: int = 20, seed: int = 0, limit: int = LIMIT, **kwargs: Any) -> None:
        super().__init__(("activations", "concepts", "mask"), limit=limit, **kwargs)
        self.permutations = permutations
        self.seed = seed

    def update(self, activations: Tensor, concepts: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch: the layer's activations, the concepts' values, and which positions count."""
        self.keep({"activations": activations, "concepts": concepts, "mask": mask})

    def findings(self) -> Monosemanticity:
        """All findings on what this process holds."""
        return monosemanticity(
            self.needed("activations"),
            self.needed("concepts"),
            mask=self.gathered("mask"),
            permutations=self.permutations,
            seed=self.seed,
        )

    def compute(self) -> dict[str, Tensor]:
        """The scores by name."""
        found = self.findings()
        names = ("selectivity", "permuted_selectivity", "coverage", "completeness", "live")
        return named({name: float(getattr(found, name)) for name in names}, self.needed("activations").device)
