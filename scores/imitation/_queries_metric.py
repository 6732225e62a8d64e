"""Scores of a primary's answers as metrics that collect the queries batch by batch: errors foreseen, paths of trees."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores.imitation._families import Family
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._tree_path import TreePath, tree_path_length
from legibility.scores.imitation._watching import error_predictability


class _OfQueries(Collected):
    """Collects what a primary read and answered."""

    def __init__(self, *, limit: int, **kwargs: Any) -> None:
        super().__init__(("logits", "inputs", "labels", "mask"), limit=limit, **kwargs)

    def update(self, inputs: Tensor, logits: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Add a batch: what the primary read and answered, and if known the labels and which positions count."""
        self.keep({"logits": logits, "inputs": inputs, "labels": labels, "mask": mask})

    def queries(self) -> Queries:
        """All that this process holds."""
        return Queries(self.needed("inputs"), self.needed("logits"), self.gathered("labels"), self.gathered("mask"))


class PredictableErrors(_OfQueries):
    """`error_predictability` over everything that `update` was given (its card is there), ranks one after the other.

    `update(inputs, logits, labels, mask=None)`; `compute()` fits all families and gives float64 scalars
    `"<family>/xea"`, `"<family>/kappa"`, `"<family>/errors"`, and `"median/xea"` over the families that have a value.
    `ErrorAgreement` takes decisions that somebody else made. Don't use `forward`.

    Args:
        families: the held-out families.
        passes: as there, like the others: `batch_size`, `learning_rate`, `width`, `seed`, `jobs`.
        limit: examples kept on each process.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `error_predictability`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import PredictableErrors
        >>> from legibility.students import LinearStudent
        >>> x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> score = PredictableErrors([LinearStudent()])
        >>> says = (x[:, :1] + x[:, 1:2]) @ torch.tensor([[-3.0, 3.0]])  # looks at a feature that it shouldn't
        >>> score.update(x, says, (x[:, 0] > 0).long())
        >>> bool(score.compute()["median/xea"] > 0.5)
        True
    """

    higher_is_better: bool | None = True

    def __init__(
        self,
        families: Sequence[Family],
        *,
        passes: int = 8,
        batch_size: int = 8,
        learning_rate: float = 1e-2,
        width: int = 32,
        seed: int = 0,
        jobs: int | None = None,
        limit: int = LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(limit=limit, **kwargs)
        self.families = tuple(families)
        self.settings: dict[str, Any] = {
            "passes": passes,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "width": width,
            "seed": seed,
            "jobs": jobs,
        }

    def compute(self) -> dict[str, Tensor]:
        """Fit all families and name their findings."""
        queries = self.queries()
        found = error_predictability(queries, self.families, **self.settings)
        values: dict[str, float] = {}
        for name, each in found.items():
            values |= {f"{name}/xea": each.value, f"{name}/kappa": each.kappa, f"{name}/errors": float(each.errors)}
        finite = [each.value for each in found.values() if math.isfinite(each.value)]
        values["median/xea"] = statistics.median(finite) if finite else math.nan
        return named(values, queries.logits.device)


class TreePathLength(_OfQueries):
    """`tree_path_length` over everything that `update` was given (its card is there), ranks one after the other.

    `update(inputs, logits, labels=None, mask=None)`; `compute()` gives float64 scalars `"length"`, `"leaves"`,
    `"agreement"`, `"twin"`, `"best_agreement"`. `findings()` gives the `TreePath`. Don't use `forward`.

    Args:
        fidelity: agreement to be reached, in (0, 1].
        seed: breaks ties between splits.
        limit: examples kept on each process.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `tree_path_length`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import TreePathLength
        >>> score = TreePathLength(fidelity=0.95)
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> corner = (x[:, 0] > 0) & (x[:, 1] > 0)
        >>> score.update(x, torch.stack([~corner, corner], 1) * 5.0)
        >>> round(score.compute()["length"].item(), 1)
        1.5
    """

    higher_is_better: bool | None = False

    def __init__(self, *, fidelity: float = 0.9, seed: int = 0, limit: int = LIMIT, **kwargs: Any) -> None:
        super().__init__(limit=limit, **kwargs)
        self.settings: dict[str, Any] = {"fidelity": fidelity, "seed": seed}

    def findings(self) -> TreePath:
        """The tree on what this process holds."""
        return tree_path_length(self.queries(), **self.settings)

    def compute(self) -> dict[str, Tensor]:
        """The values by name."""
        found = self.findings()
        values = {"length": found.value, "leaves": float(found.leaves) if found.reason is None else math.nan}
        values |= {"agreement": found.agreement, "twin": found.twin, "best_agreement": found.best_agreement}
        return named(values, self.needed("logits").device)
