"""Retargetability as a metric that collects activations and new labels batch by batch."""

from typing import Any

from torch import Tensor, nn

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores.representation._retargetability import Retargeting, retargetability


class Retargetability(Collected):
    """`retargetability` over everything that `update` was given (its card is there), ranks one after the other.

    `update(activations, goal, random_activations)`; `compute()` gives float64 scalars: `"retargetability"`, and in bits
    `"frozen"`, `"random"`, `"full"`, `"null"`. `findings()` gives the `Retargeting`. Don't use `forward`.

    Args:
        rest: the model from the layer to its logits.
        random_rest: the same of the untrained model.
        passes: as there, like the others: `batch_size`, `learning_rate`, `seed`.
        limit: examples kept on each process; bounds the state at `limit` times one example's activations, twice.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `retargetability`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import Retargetability
        >>> score = Retargetability(torch.nn.Identity(), torch.nn.Linear(4, 4), passes=1)
        >>> h = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> score.update(h, h.argmax(1), h)
        >>> sorted(score.compute())
        ['frozen', 'full', 'null', 'random', 'retargetability']
    """

    higher_is_better: bool | None = True

    def __init__(
        self,
        rest: nn.Module,
        random_rest: nn.Module,
        *,
        passes: int = 10,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        seed: int = 0,
        limit: int = LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(("activations", "goal", "random_activations"), limit=limit, **kwargs)
        self._rests = (rest, random_rest)  # in a tuple, they are no submodules: the state must not hold the model
        self.settings: dict[str, Any] = {
            "passes": passes,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
        }

    def update(self, activations: Tensor, goal: Tensor, random_activations: Tensor) -> None:
        """Add a batch: the layer's activations, the new labels, and the untrained model's activations."""
        self.keep({"activations": activations, "goal": goal, "random_activations": random_activations})

    def findings(self) -> Retargeting:
        """All code lengths on what this process holds."""
        return retargetability(
            self.needed("activations"),
            self.needed("goal"),
            self._rests[0],
            self.needed("random_activations"),
            self._rests[1],
            **self.settings,
        )

    def compute(self) -> dict[str, Tensor]:
        """The values by name."""
        found = self.findings()
        values = {name: float(value) for name, value in vars(found).items() if name != "reason"}
        return named(values, self.needed("activations").device)
