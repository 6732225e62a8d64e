"""The queries on which families of students are compared with a primary."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from legibility.scores._inputs import check_floating, check_labels

LEAST_QUERIES = 32
"""Fewer queries leave blocks too small to learn from."""


@dataclass(frozen=True, eq=False)
class Queries:
    """What a primary answered to a fixed, ordered list of inputs. The order is part of the measurement.

    Measuring happens on the device of `inputs`; the other tensors may lie elsewhere.

    Attributes:
        inputs: what the primary read, `(N, ...)`.
        logits: what it answered, `(N, K)` or `(N, T, K)`, floating point, finite where it counts.
        labels: the true classes, shaped like `logits` without `K`; None if unknown (then there is no twin).
        mask: bool, True where a position counts: `(N, T)` or `(N,)`; None = all. With logits `(N, K)` of inputs with
            positions, `(N, T)` tells the students which positions to read, and a query without any doesn't count.
        taps: hidden activations of the primary by name, `(N, ...)` floating point.

    Raises:
        TypeError: for logits or taps that aren't floating point, labels that aren't integers.
        ValueError: for fewer than 32 queries, shapes that don't fit, labels that aren't classes, values that aren't
            finite, or a mask that leaves nothing.

    Example:
        >>> import torch
        >>> from legibility.scores import Queries
        >>> queries = Queries(inputs=torch.randn(64, 5), logits=torch.randn(64, 3))
        >>> len(queries)
        64
    """

    inputs: Shaped[Tensor, "queries ..."]
    logits: Float[Tensor, "queries *positions classes"]
    labels: Int[Tensor, " queries *positions"] | None = None
    mask: Bool[Tensor, " queries *positions"] | None = None
    taps: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_floating(self.logits, "logits")
        if self.logits.ndim not in (2, 3):
            raise ValueError(f"`logits` must be (N, K) or (N, T, K), got {tuple(self.logits.shape)}.")
        if len(self) < LEAST_QUERIES:
            raise ValueError(f"`logits` must answer at least {LEAST_QUERIES} queries, got {len(self)}: give more.")
        if self.inputs.ndim == 0 or self.inputs.shape[0] != len(self):
            raise ValueError(
                f"`inputs` must hold as many queries as `logits`, {len(self)}, got {tuple(self.inputs.shape)}."
            )
        if self.mask is not None:
            fitting = [tuple(self.logits.shape[:-1])]
            if self.logits.ndim == 2 and self.inputs.ndim >= 2:
                fitting.append(tuple(self.inputs.shape[:2]))
            if self.mask.dtype != torch.bool or tuple(self.mask.shape) not in fitting:
                expected = " or ".join(str(shape) for shape in fitting)
                raise ValueError(f"`mask` must be bool {expected}, got {self.mask.dtype} {tuple(self.mask.shape)}.")
        counted = self.counted.to(self.logits.device)
        if not bool(counted.any()):
            raise ValueError("`mask` must leave at least one position, got none.")
        if self.labels is not None:
            check_labels(self.labels, self.logits, counted.to(self.labels.device))
        if not bool(torch.isfinite(self.logits[counted]).all()):
            raise ValueError("`logits` must be finite where `mask` is True: the primary diverged, or mask them.")
        for name, tap in self.taps.items():
            check_floating(tap, f"taps['{name}']")
            if tap.ndim < 2 or tap.shape[0] != len(self):
                raise ValueError(f"`taps['{name}']` must be ({len(self)}, ..., units), got {tuple(tap.shape)}.")

    def __len__(self) -> int:
        return self.logits.shape[0]

    def together(self) -> "Queries":
        """The same with all tensors on the device of `inputs`."""
        device = self.inputs.device
        return Queries(
            inputs=self.inputs,
            logits=self.logits.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            taps={name: tap.to(device) for name, tap in self.taps.items()},
        )

    @property
    def counted(self) -> Tensor:
        """bool, shaped like `logits` without classes: the positions that count."""
        if self.mask is None:
            return torch.ones(self.logits.shape[:-1], dtype=torch.bool, device=self.logits.device)
        return self.mask.any(1) if self.mask.ndim == self.logits.ndim else self.mask

    @property
    def positions_to_read(self) -> Tensor | None:
        """The mask for the students' inputs: `(N, T)` or None."""
        return self.mask if self.mask is not None and self.mask.ndim == 2 else None
