"""Key-value memories as a metric that collects the stream and the keys batch by batch."""

from typing import Any

from torch import Tensor

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores._divergence import Rest
from legibility.scores.representation._key_value_memories import MemoryReadings, key_value_memories

_SCORES = (
    "agreement",
    "permuted_agreement",
    "success",
    "side_effects",
    "specificity",
    "control_specificity",
)


class KeyValueMemories(Collected):
    """`key_value_memories` over everything that `update` was given (its card is there), ranks one after the other.

    `update(stream, keys, mask=None)`; `compute()` gives float64 scalars: `"agreement"`, `"permuted_agreement"`,
    `"success"`, `"side_effects"`, `"specificity"`, `"control_specificity"`, which point different ways. `findings()`
    gives the `MemoryReadings`. Don't use `forward`, which would score each batch on its own.

    Args:
        values: what each inner unit writes, `(memories, units)`.
        unembedding: a row for each class.
        rest: the model from the stream to its logits, in evaluation mode.
        memories: how many units to ask.
        seed: of the draws.
        limit: examples kept on each process; bounds the state at `limit` times one example's stream and keys.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `key_value_memories`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import KeyValueMemories
        >>> classes = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
        >>> score = KeyValueMemories(3 * torch.eye(5), torch.eye(5), lambda stream: 3 * stream)
        >>> score.update(3 * torch.eye(5)[classes], torch.eye(5)[classes])
        >>> score.compute()["agreement"]
        tensor(1., dtype=torch.float64)
    """

    higher_is_better: bool | None = None

    def __init__(
        self,
        values: Tensor,
        unembedding: Tensor,
        rest: Rest,
        *,
        memories: int = 64,
        seed: int = 0,
        limit: int = LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(("stream", "keys", "mask"), limit=limit, **kwargs)
        self._model = (values, unembedding, rest)  # no submodule: the score's state must not hold the model
        self.memories = memories
        self.seed = seed

    def update(self, stream: Tensor, keys: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch: the stream after the layer, what its inner units gave, and which positions count."""
        self.keep({"stream": stream, "keys": keys, "mask": mask})

    def findings(self) -> MemoryReadings:
        """All readings on what this process holds."""
        return key_value_memories(
            self.needed("stream"),
            self.needed("keys"),
            *self._model,
            mask=self.gathered("mask"),
            memories=self.memories,
            seed=self.seed,
        )

    def compute(self) -> dict[str, Tensor]:
        """The readings by name."""
        found = self.findings()
        return named({name: float(getattr(found, name)) for name in _SCORES}, self.needed("stream").device)
