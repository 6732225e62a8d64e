"""Faithful circuit size as a metric that collects its inputs batch by batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from legibility.scores.circuits._circuit import Circuit, faithful_circuit
from legibility.scores.circuits._masked import Forward, Granularity

_VALUES = ("size_90", "size_99", "learned_90", "learned_99", "area", "count_90", "count_99", "stability", "divergence")


class FaithfulCircuit(Metric):
    """`faithful_circuit` of one model on everything that `update` was given, ranks one after the other.

    `compute()` gives `size_90`, `size_99`, `learned_90`, `learned_99`, `area`, `count_90`, `count_99`, `stability` and
    `divergence` as float64 scalars (see `Circuit`); the whole result is in `found`. On several ranks the inputs of all
    are gathered and every rank computes the same. Don't use `forward`, which would score each batch on its own.

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

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None
    full_state_update: bool | None = False

    inputs: list[Tensor] | Tensor
    mask: list[Tensor] | Tensor

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
        super().__init__(**kwargs)
        self._model = (model,)  # a tuple, for the model's weights are no state of this metric
        self.settings: dict[str, Any] = {
            "granularity": granularity,
            "forward": forward_call,
            "learned_steps": learned_steps,
            "batch_size": batch_size,
            "seed": seed,
        }
        #: The whole result of the last `compute`.
        self.found: Circuit | None = None
        self.add_state("inputs", [], dist_reduce_fx="cat")
        self.add_state("mask", [], dist_reduce_fx="cat")

    def update(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of inputs, and which positions count."""
        if (mask is None) != (len(self.mask) == 0) and self._update_count > 1:
            raise ValueError("`mask` must be given on every update or on none.")
        assert isinstance(self.inputs, list) and isinstance(self.mask, list)
        self.inputs.append(inputs.detach())
        if mask is not None:
            self.mask.append(mask)

    def compute(self) -> dict[str, Tensor]:
        """Find the circuit and name its values."""
        inputs = dim_zero_cat(self.inputs)
        given = isinstance(self.mask, Tensor) or len(self.mask) > 0
        mask = dim_zero_cat(self.mask) if given else None
        mask = None if mask is None or mask.numel() == 0 else mask.bool()
        self.found = faithful_circuit(self._model[0], inputs, mask=mask, **self.settings)
        return {name: torch.tensor(getattr(self.found, name), dtype=torch.float64) for name in _VALUES}

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)
