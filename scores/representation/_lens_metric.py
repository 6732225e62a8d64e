"""The lenses as a metric that collects layers batch by batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores.representation._lens import Head, LensProfile, lens_profile


class LensGap(Collected):
    """`lens_profile` over everything that `update` was given (its card is there), ranks one after the other.

    `update(layers, logits, mask=None)`; `compute()` gives float64 scalars: `"gap"`, `"information"` and for each layer
    but the last `"<layer>/logit_kl"`, `"<layer>/tuned_kl"`, `"<layer>/gap"`. `findings()` gives the `LensProfile`. Don't
    use `forward`, which would score each batch on its own.

    Args:
        head: final norm and unembedding, in evaluation mode.
        layers: names that `update` will bring, early to late; the last is what the head reads.
        seed: of the split.
        limit: examples kept on each process; bounds the state at `limit` times one example's layers and logits.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: on `update` for other layers than announced; as `lens_profile` on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import LensGap
        >>> score = LensGap(lambda h: 3 * h, layers=["early", "last"])
        >>> last = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> score.update({"early": last, "last": last}, 3 * last)
        >>> score.compute()["gap"]
        tensor(0., dtype=torch.float64)
    """

    higher_is_better: bool | None = False

    def __init__(self, head: Head, *, layers: Sequence[str], seed: int = 0, limit: int = LIMIT, **kwargs: Any) -> None:
        # Names of layers hold dots, which names of states may not.
        states = [f"layer_{index}" for index in range(len(layers))]
        super().__init__(("logits", "mask", *states), limit=limit, **kwargs)
        self._head = (head,)  # not a submodule: the score's state must not hold the model
        self.layers = tuple(layers)
        self.seed = seed

    def update(self, layers: Mapping[str, Tensor], logits: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch: activations of each layer, the model's answers, and which positions count."""
        if set(layers) != set(self.layers):
            raise ValueError(f"`layers` must be {list(self.layers)} as announced, got {list(layers)}.")
        given = {f"layer_{index}": layers[name] for index, name in enumerate(self.layers)}
        self.keep({"logits": logits, "mask": mask, **given})

    def findings(self) -> LensProfile:
        """The profile over depth, on what this process holds."""
        layers = {name: self.needed(f"layer_{index}") for index, name in enumerate(self.layers)}
        return lens_profile(layers, self._head[0], self.needed("logits"), mask=self.gathered("mask"), seed=self.seed)

    def compute(self) -> dict[str, Tensor]:
        """The scores by name."""
        found = self.findings()
        values = {"gap": found.gap, "information": found.information}
        for name, depth in found.layers.items():
            values |= {f"{name}/{key}": float(getattr(depth, key)) for key in ("logit_kl", "tuned_kl", "gap")}
        return named(values, self.needed("logits").device)
