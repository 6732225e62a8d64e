"""Faithful circuit size as a metric that collects its inputs batch by batch."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from legibility.scores._asking import Forward
from legibility.scores._of_model import CollectedScore
from legibility.scores.circuits._circuit import Circuit, faithful_circuit
from legibility.scores.circuits._masked import Granularity

_VALUES = ("size_90", "size_99", "learned_90", "learned_99", "area", "count_90", "count_99", "stability", "divergence")


class FaithfulCircuit(CollectedScore):
    """`faithful_circuit` of one model on everything that `update` was given, ranks one after the other.

    `compute()` gives `size_90`, `size_99`, `learned_90`, `learned_99`, `area`, `count_90`, `count_99`, `stability` and
    `divergence` as float64 scalars (see `Circuit`); the whole result is in `found`. On several ranks the inputs of all
    are gathered and every rank computes the same.

    No direction is set, for `area` and `stability` point the other way than the sizes.

    Args:
        model: any module, the same on all ranks.
        granularity: as in `faithful_circuit`, like the others: `forward_call`, `learned_steps`, `batch_size`, `seed`.
        forward_call: `(model, rows) -> logits`; None calls the model.
        learned_steps: of the learned mask.
        batch_size: rows per call.
        seed: of what is drawn.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from legibility.scores import FaithfulCircuit
        >>> score = FaithfulCircuit(torch.nn.Linear(4, 3), learned_steps=0)
        >>> for batch in torch.randn(128, 4, generator=torch.Generator().manual_seed(0)).split(32):
        ...     score.update(batch * 9)
        >>> bool(0 < score.compute()["size_90"] <= 1)
        True
    """

    higher_is_better: bool | None = None

    columns = ("inputs", "mask")

    def __init__(
        self,
        model: nn.Module,
        *,
        granularity: Granularity = "edges",
        forward_call: Forward | None = None,
        learned_steps: int = 200,
        batch_size: int = 256,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.settings: dict[str, Any] = {
            "granularity": granularity,
            "forward": forward_call,
            "learned_steps": learned_steps,
            "batch_size": batch_size,
            "seed": seed,
        }
        #: The whole result of the last `compute`.
        self.found: Circuit | None = None

    def update(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of inputs, and which positions count."""
        self._collect(inputs=inputs, mask=mask)

    def measured(self, model: nn.Module, columns: Mapping[str, Tensor | None]) -> dict[str, float]:
        """Find the circuit."""
        inputs, mask = columns["inputs"], columns["mask"]
        assert inputs is not None
        self.found = faithful_circuit(model, inputs, mask=None if mask is None else mask.bool(), **self.settings)
        return {name: float(getattr(self.found, name)) for name in _VALUES}
