"""Gated disentanglement as a metric that collects activations and concepts batch by batch."""

from typing import Any

from torch import Tensor

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores.concepts._disentanglement import Disentanglement, gated_disentanglement

_SCORES = (
    "score",
    "disentanglement",
    "completeness",
    "informativeness",
    "permuted_informativeness",
    "gate",
)


class GatedDisentanglement(Collected):
    """`gated_disentanglement` over everything that `update` was given (its card is there), rank after rank.

    `update(activations, concepts, mask=None)`; `compute()` gives float64 scalars: `"score"`, `"disentanglement"`,
    `"completeness"`, `"informativeness"`, `"permuted_informativeness"`, `"gate"`. `findings()` gives the whole
    `Disentanglement`. Don't use `forward`, which would score each batch on its own.

    Args:
        permutations: of the labels.
        seed: of the split and the permutations.
        limit: examples kept on each process; bounds the state at `limit` times one example's activations.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `gated_disentanglement`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import GatedDisentanglement
        >>> score = GatedDisentanglement()
        >>> signs = torch.randint(2, (512, 2), generator=torch.Generator().manual_seed(0))
        >>> score.update(signs.float(), signs)
        >>> round(score.compute()["score"].item(), 2)
        1.0
    """

    higher_is_better: bool | None = True

    def __init__(self, *, permutations: int = 5, seed: int = 0, limit: int = LIMIT, **kwargs: Any) -> None:
        super().__init__(("activations", "concepts", "mask"), limit=limit, **kwargs)
        self.permutations = permutations
        self.seed = seed

    def update(self, activations: Tensor, concepts: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch: the layer's activations, the concepts' values, and which positions count."""
        self.keep({"activations": activations, "concepts": concepts, "mask": mask})

    def findings(self) -> Disentanglement:
        """All findings on what this process holds."""
        return gated_disentanglement(
            self.needed("activations"),
            self.needed("concepts"),
            mask=self.gathered("mask"),
            permutations=self.permutations,
            seed=self.seed,
        )

    def compute(self) -> dict[str, Tensor]:
        """The scores by name."""
        found = self.findings()
        return named({name: float(getattr(found, name)) for name in _SCORES}, self.needed("activations").device)
