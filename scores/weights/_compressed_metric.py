"""Compressed size as a metric that collects its examples batch by batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from legibility.scores._asking import Forward
from legibility.scores._of_model import CollectedScore
from legibility.scores.weights._compressed import compressed_size


class CompressedSizeOfModel(CollectedScore):
    """`compressed_size` of one model on everything that `update` was given, ranks one after the other.

    `compute()` gives `bits`, `share`, `kept`, `bits_per_weight`, `rise` and `bound` as float64 scalars (see
    `CompressedSize`). The weights are equal on all ranks and counted once.

    Args:
        model: any module, the same on all ranks.
        tolerance: as in `compressed_size`, like `forward_call`, `batch_size` and `seed`.
        forward_call: `(model, rows) -> output`; None calls the model.
        batch_size: rows per call.
        seed: of the bootstrap.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from legibility.scores import CompressedSizeOfModel
        >>> model = torch.nn.Linear(4, 2)
        >>> inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 9
        >>> score = CompressedSizeOfModel(model, tolerance=0.1)
        >>> score.update(inputs, model(inputs).argmax(-1))
        >>> bool(score.compute()["share"] < 1)
        True
    """

    higher_is_better: bool | None = False

    columns = ("inputs", "labels", "mask")

    def __init__(
        self,
        model: nn.Module,
        *,
        tolerance: float = 0.01,
        forward_call: Forward | None = None,
        batch_size: int = 256,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.settings: dict[str, Any] = {
            "tolerance": tolerance,
            "forward": forward_call,
            "batch_size": batch_size,
            "seed": seed,
        }

    def update(self, inputs: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of inputs, their classes or values, and which positions count."""
        self._collect(inputs=inputs, labels=labels, mask=mask)

    def measured(self, model: nn.Module, columns: Mapping[str, Tensor | None]) -> dict[str, float]:
        """Find the smallest code."""
        inputs, labels, mask = columns["inputs"], columns["labels"], columns["mask"]
        assert inputs is not None and labels is not None
        found = compressed_size(model, inputs, labels, mask=None if mask is None else mask.bool(), **self.settings)
        names: Sequence[str] = ("bits", "share", "kept", "bits_per_weight", "rise", "bound")
        return {name: float(getattr(found, name)) for name in names}
