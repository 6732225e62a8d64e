"""The student of the distribution: learns the primary's full output and its taps, and is compared with them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from legibility.losses import forward_kl, masked_mean
from legibility.scores.imitation._families import Imitator, Training
from legibility.scores.imitation._queries import Queries
from legibility.scores.representation._similarity import linear_cka
from legibility.scores.representation._variance_unexplained import FractionOfVarianceUnexplained
from legibility.students import Prediction, Student, read_signature

MOST_UNITS = 2048
"""Of a tap, for CKA: it takes a matrix of units by units."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """How close one student came on the queries it hadn't seen: nats per position, FVU and prediction of each tap.

    `by_position` and `decided` say the same for each query: nats, NaN where it doesn't count, and the student's top-1.
    """

    kl: float
    fvu: dict[str, float]
    predicted_taps: dict[str, Tensor]
    cka: dict[str, float] = field(default_factory=dict)
    by_position: Tensor = field(default_factory=lambda: torch.zeros(0))
    decided: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


class _Tap:
    """One tap as students predict it: `(N, T, units)` or flattened `(N, units)`, with the positions that count."""

    def __init__(self, name: str, values: Tensor, per_position: bool, queries: Queries, seen: int) -> None:
        mask = queries.positions_to_read if per_position else None
        if mask is None:
            counted = queries.counted if queries.counted.ndim == 1 else queries.counted.any(1)
            mask = counted.unsqueeze(1).expand(values.shape[:2]) if per_position else counted
        self.shape = values.shape
        self.mask = mask
        self.values = (values if per_position else values.flatten(1)).float()
        selected = self.values[:seen][self.mask[:seen]]
        if not bool(torch.isfinite(self.values[self.mask]).all()):
            raise ValueError(f"`taps['{name}']` must be finite where `mask` is True.")
        variance = selected.double().var(0, correction=0)
        # Units that only rounding moves have nothing to imitate.
        live = variance > 1e-12 * selected.double().square().mean(0)
        self.weight = torch.where(live, 1.0 / variance, 0.0).float() / live.sum().clamp(min=1)

    def loss(self, predicted: Tensor, rows: Tensor) -> Tensor:
        keep = self.mask[rows]
        error = (self.values[rows][keep] - predicted[keep]).square() @ self.weight
        return error.sum() / keep.sum().clamp(min=1)

    def alike(self, predicted: Tensor, seen: int) -> float:
        """CKA of what was not seen and its prediction, in units of each unit's deviation."""
        keep, scale = self.mask[seen:], self.weight.sqrt()
        real, said = self.values[seen:][keep] * scale, predicted[keep] * scale
        if real.shape[-1] > MOST_UNITS or len(real) < 4 or not bool(torch.isfinite(said).all()):
            return math.nan
        return linear_cka(real, said)


def imitate_distribution(
    queries: Queries, student: Student, seen: int, training: Training, advance: Callable[[], None]
) -> Distribution:
    """Train on the first `seen` queries, for twice the passes of the student of decisions; measure on the rest."""
    counted = queries.counted
    logits = torch.where(counted.unsqueeze(-1), queries.logits, 0.0)
    signature = read_signature(queries.inputs, queries.logits, dict(queries.taps))
    taps = {
        name: _Tap(name, tap, signature.taps[name].per_position, queries, seen) for name, tap in queries.taps.items()
    }

    def loss(prediction: Prediction, rows: Tensor) -> Tensor:
        output = masked_mean(forward_kl(logits[rows], prediction.output), counted[rows])
        if not taps:
            return output
        return output + torch.stack([tap.loss(prediction.taps[name], rows) for name, tap in taps.items()]).mean()

    imitator = Imitator(student, signature, queries, training, advance)
    imitator.network.set_statistics({name: tap.values[:seen] for name, tap in taps.items()})
    imitator.learn(seen, loss, passes=2 * training.passes)
    total, positions = 0.0, 0
    # Whoever asks asks alone: the other ranks of a group need not be here.
    unexplained = {
        name: FractionOfVarianceUnexplained(tap.values.shape[-1], sync_on_compute=False).to(logits.device)
        for name, tap in taps.items()
    }
    predicted: dict[str, list[Tensor]] = {name: [] for name in taps}
    by_position, decided = [], []
    for rows, prediction in imitator.answers(seen, len(queries)):
        keep = counted[rows]
        divergence = forward_kl(logits[rows][keep].double(), prediction.output[keep].double())
        total += float(divergence.sum())
        positions += divergence.numel()
        by_position.append(
            torch.full(keep.shape, math.nan, dtype=torch.float32, device=keep.device).masked_scatter(
                keep, divergence.float()
            )
        )
        decided.append(prediction.output.argmax(-1))
        for name, tap in taps.items():
            unexplained[name].update(tap.values[rows], prediction.taps[name], tap.mask[rows])
            predicted[name].append(prediction.taps[name])
    said = {name: torch.cat(parts) for name, parts in predicted.items()}
    return Distribution(
        kl=total / positions if positions else math.nan,
        fvu={name: float(score.compute()) for name, score in unexplained.items()},
        predicted_taps={name: said[name].view(-1, *taps[name].shape[1:]) for name in taps},
        cka={name: tap.alike(said[name], seen) for name, tap in taps.items()},
        by_position=torch.cat(by_position),
        decided=torch.cat(decided),
    )
