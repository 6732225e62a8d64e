"""What one held-out family made of the primary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

PROTOCOL = "held-out-imitation/1"
"""Version of the protocol; values of different versions or settings must not be compared."""


@dataclass(frozen=True, eq=False)
class FamilyImitation:
    """What one held-out family made of the primary. A score that couldn't be taken is NaN, and `reasons` says why.

    Attributes:
        family: the student's name.
        kl: `KL(p || q)` on the last block, nats per position, lower = more legible. Softening the primary lowers it:
            compare with the temperature control.
        relative_kl: `kl / KL(p || m)`, `m` the mean of `p` over the queries before the last block, lower = more
            legible; 1 = no better than knowing `m`.
        disagreement: share of the last block's positions where the top-1 of the student of decisions isn't the
            primary's, lower = more legible. Independent of the primary's temperature.
        code_length: bits to send the primary's top-1 of all queries (PCL), lower = more legible.
        null_code_length: bits of the same by the KT code that ignores the inputs (PCL_0).
        saving: `S = 1 - PCL / PCL_0`, at most 1, higher = more legible. Independent of the primary's temperature.
        adjusted_saving: `dS = S - S(labels)`, higher = more legible than the task itself.
        surplus: surplus description length, bits: what the code costs beyond .1 bits per label, summed over blocks,
            lower = more legible. It stops growing once the family has learnt the primary, which the code length doesn't.
        fvu: per tap, mean over live units of the fraction of variance unexplained on the last block, lower = better.
        cka: per tap, linear CKA (unbiased) of its units and the student's prediction of them on the last block, each unit
            by its deviation; NaN above 2048 units. Not directed: see `linear_cka`.
        predicted_taps: per tap, the prediction for the last block, shaped like the primary's (for patch-through).
        by_position: `KL(p || q)` of each query of the last block, nats, `(n,)` or `(n, T)`, NaN where it doesn't count;
            empty for estimators.
        decided: the top-1 of the student of the distribution there; empty for estimators.
        first_scored: index of the last block's first query.
        positions: positions that count, over all queries: `code_length / positions` is bits per position.
        seconds: wall time of this family.
        reasons: why a score is NaN, by its name.
        version: of the protocol.
    """

    family: str
    first_scored: int
    positions: int
    kl: float = math.nan
    relative_kl: float = math.nan
    disagreement: float = math.nan
    code_length: float = math.nan
    null_code_length: float = math.nan
    saving: float = math.nan
    adjusted_saving: float = math.nan
    surplus: float = math.nan
    fvu: Mapping[str, float] = field(default_factory=dict)
    predicted_taps: Mapping[str, Tensor] = field(default_factory=dict)
    by_position: Tensor = field(default_factory=lambda: torch.zeros(0))
    decided: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    cka: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reasons: Mapping[str, str] = field(default_factory=dict)
    version: str = PROTOCOL
