"""Error predictability as a metric: counts that add up over batches and ranks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from legibility.scores.imitation._errors import conclude, tally


class ErrorAgreement(Metric):
    """Streaming `error_agreement`: XEA and error consistency over all positions of all batches and ranks.

    `update(primary, labels, student, twin, mask=None)` takes decisions; `compute()` gives `xea`, `xea_low`, `xea_high`,
    `kappa`, `kappa_low`, `kappa_high`, `errors` and `accuracy` as float64 scalars. All states are sums; the order of
    examples and how they were cut don't matter. A DistributedSampler that pads repeats examples: use one that doesn't.

    Args:
        classes: how many there are.
        seed: of the bootstrap.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from legibility.scores import ErrorAgreement
        >>> score = ErrorAgreement(classes=3)
        >>> labels = torch.arange(900) % 3
        >>> primary = torch.where(torch.arange(900) < 300, (labels + 1) % 3, labels)
        >>> score.update(primary, labels, student=primary, twin=labels)
        >>> score.compute()["xea"]
        tensor(1., dtype=torch.float64)
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = True
    full_state_update: bool | None = False

    errors: Tensor
    rightness: Tensor
    labels: Tensor
    decisions: Tensor

    def __init__(self, classes: int, *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if classes < 2:
            raise ValueError(f"`classes` must be at least 2, got {classes}.")
        self.classes, self.seed = classes, seed
        for name, size in (("errors", 4), ("rightness", 4), ("labels", classes), ("decisions", classes)):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, primary: Tensor, labels: Tensor, student: Tensor, twin: Tensor, mask: Tensor | None = None
    ) -> None:
        """Add one batch of decisions, the true classes, and which positions count."""
        errors, rightness, true, said = tally(primary, labels, student, twin, mask)
        if max(len(true), len(said)) > self.classes:
            raise ValueError(f"`labels` and `primary` must be in 0..{self.classes - 1}: `classes` is {self.classes}.")
        self.errors = self.errors + errors
        self.rightness = self.rightness + rightness
        for name, counts in (("labels", true), ("decisions", said)):
            padded = torch.nn.functional.pad(counts, (0, self.classes - len(counts)))
            setattr(self, name, getattr(self, name) + padded)

    def compute(self) -> dict[str, Tensor]:
        """XEA, kappa, their intervals, and what they rest on."""
        found = conclude(self.errors, self.rightness, self.labels, self.decisions, seed=self.seed)
        values = {
            "xea": found.value,
            "xea_low": found.interval[0],
            "xea_high": found.interval[1],
            "kappa": found.kappa,
            "kappa_low": found.kappa_interval[0],
            "kappa_high": found.kappa_interval[1],
            "errors": float(found.errors),
            "accuracy": found.accuracy,
        }
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)
