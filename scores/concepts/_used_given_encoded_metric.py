"""Used-given-encoded as a metric that collects activations and concepts batch by batch."""

from typing import Any

from torch import Tensor

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores._divergence import Rest
from legibility.scores.concepts._used_given_encoded import UseOfConcepts, used_given_encoded

_SCORES = ("score", "share", "witnessed_share", "isolation", "excess_use", "information")


class UsedGivenEncoded(Collected):
    """`used_given_encoded` over everything that `update` was given (its card is there), ranks one after the other.

    `update(activations, concepts, mask=None)`; `compute()` gives float64 scalars: `"score"`, `"share"`,
    `"witnessed_share"`, `"isolation"`, `"excess_use"`, `"information"`, and for concept i `"i/use"`, `"i/use_null"`,
    `"i/saving"`, `"i/permuted_saving"`, `"i/interchange"`. `findings()` gives the whole `UseOfConcepts`. Every rank
    must hold the same `rest`. Don't use `forward`, which would score each batch on its own.

    Args:
        rest: the model from the layer to its logits, in evaluation mode.
        permutations: of the null.
        seed: of permutations and donors.
        limit: examples kept on each process; bounds the state at `limit` times one example's activations.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `used_given_encoded`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import UsedGivenEncoded
        >>> score = UsedGivenEncoded(lambda h: h[:, :2] * torch.tensor([3.0, 0.0]), permutations=20)
        >>> signs = torch.randint(2, (512, 2), generator=torch.Generator().manual_seed(0))
        >>> noise = torch.randn(512, 6, generator=torch.Generator().manual_seed(1))
        >>> score.update(torch.cat([2.0 * signs - 1.0, noise], 1), signs)
        >>> score.compute()["share"]
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better: bool | None = True

    def __init__(
        self, rest: Rest, *, permutations: int = 100, seed: int = 0, limit: int = LIMIT, **kwargs: Any
    ) -> None:
        super().__init__(("activations", "concepts", "mask"), limit=limit, **kwargs)
        self._rest = (rest,)  # not a submodule: the score's state must not hold the model
        self.permutations = permutations
        self.seed = seed

    def update(self, activations: Tensor, concepts: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch: the layer's activations, the concepts' values, and which positions count."""
        self.keep({"activations": activations, "concepts": concepts, "mask": mask})

    def findings(self) -> UseOfConcepts:
        """What was found out about each concept, on what this process holds."""
        return used_given_encoded(
            self.needed("activations"),
            self.needed("concepts"),
            self._rest[0],
            mask=self.gathered("mask"),
            permutations=self.permutations,
            seed=self.seed,
        )

    def compute(self) -> dict[str, Tensor]:
        """The scores by name."""
        found = self.findings()
        values = {name: float(getattr(found, name)) for name in _SCORES}
        for index, concept in enumerate(found.concepts):
            for name in ("use", "use_null", "saving", "permuted_saving", "interchange"):
                values[f"{index}/{name}"] = float(getattr(concept, name))
        return named(values, self.needed("activations").device)
