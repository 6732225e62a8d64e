"""Error predictability: can a student that watched the primary say how it will go wrong?"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.float64]
LEAST_ERRORS = 200
"""Fewer errors leave an interval as wide as the values that one would compare."""

_DRAWS = 2000
_SURE = 3.0  # standard errors by which the primary must beat the commonest label


@dataclass(frozen=True)
class ErrorPredictability:
    """What `error_agreement` found. `value` is NaN where `reason` says why; the counts and intervals stay.

    Attributes:
        value: `XEA = (P(student = primary | E) - P(twin = primary | E)) / (1 - P(twin = primary | E))`.
        interval: 95 % bootstrap interval of it.
        agreement: `P(student = primary | E)`.
        twin_agreement: `P(twin = primary | E)`.
        errors: how many errors `E` of the primary there were.
        kappa: error consistency: agreement of primary and student in being right or wrong, beyond chance.
        kappa_interval: 95 % bootstrap interval of it.
        accuracy: of the primary.
        reason: why there is no value.
    """

    value: float
    interval: tuple[float, float]
    agreement: float
    twin_agreement: float
    errors: int
    kappa: float
    kappa_interval: tuple[float, float]
    accuracy: float
    reason: str | None = None


def error_agreement(
    primary: Int[Tensor, "*batch"],
    labels: Int[Tensor, "*batch"],
    student: Int[Tensor, "*batch"],
    twin: Int[Tensor, "*batch"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    seed: int = 0,
) -> ErrorPredictability:
    """H2 from decisions: does the student go wrong where, and as, the primary does?

    `student` learnt the primary's decisions, `twin` is the same architecture that learnt the true labels from the same
    inputs; neither saw these inputs. Among the primary's errors `E`, XEA is the share of what the twin doesn't explain
    that the student does.

    Card:
        Range and direction: (-inf, 1], higher = a simple model of the primary foresees its mistakes; 0 = watching it taught
        nothing that the task didn't. NaN with fewer than 200 errors, for a primary that always says the same, and for one
        that isn't better than the commonest label (3 standard errors): such a model is wrong in a way that anybody
        foresees. Error consistency kappa in [-1, 1], higher = wrong on the same inputs.
        Cost: none beyond the decisions. Controls: the twin (inside), the untrained model. Independent of temperature.
        Gamed by: being wrong in a simple way (a linear model's errors are predictable); compare at one task loss.
        Not trained on, unless the student took part in training.

    Args:
        primary: its decisions, classes.
        labels: the true classes.
        student: decisions of who learnt the primary.
        twin: decisions of who learnt the labels.
        mask: positions that count; None means all.
        seed: of the bootstrap.

    Returns:
        XEA and kappa with their intervals.

    Raises:
        TypeError: unless all four are integers.
        ValueError: if shapes differ, or nothing counts.

    Example:
        >>> import torch
        >>> from legibility.scores import error_agreement
        >>> labels = torch.arange(900) % 3
        >>> primary = torch.where(torch.arange(900) < 300, (labels + 1) % 3, labels)  # wrong in the first third
        >>> student = torch.where(torch.arange(900) < 150, (labels + 1) % 3, labels)  # foresees half of it
        >>> found = error_agreement(primary, labels, student, twin=labels)
        >>> found.value, found.errors, round(found.kappa, 3)
        (0.5, 300, 0.571)

    Source: XEA of this project's scores; Geirhos, Meding and Wichmann, "Beyond accuracy: quantifying trial-by-trial
    behaviour of CNNs and humans by measuring error consistency", 2020, for kappa.
    """
    return conclude(*tally(primary, labels, student, twin, mask), seed=seed)


def tally(
    primary: Tensor, labels: Tensor, student: Tensor, twin: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is counted, all of it sums: agreement among errors, rightness, and how often each label and answer occurs.

    Returns:
        among the primary's errors (student and twin agree with it, student only, twin only, neither); of all (both
        right, primary only, student only, both wrong); counts of labels; counts of the primary's decisions. float64.
    """
    given = {"primary": primary, "labels": labels, "student": student, "twin": twin}
    for name, tensor in given.items():
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise TypeError(f"`{name}` must be an integer tensor of class ids, got {tensor.dtype}.")
        if tensor.shape != labels.shape:
            raise ValueError(
                f"`{name}` must have the shape of `labels` {tuple(labels.shape)}, got {tuple(tensor.shape)}."
            )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != labels.shape):
        raise ValueError(f"`mask` must be bool {tuple(labels.shape)}, got {mask.dtype} {tuple(mask.shape)}.")
    keep = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    f, y, s, t = (tensor.to(labels.device)[keep].long() for tensor in given.values())
    wrong = f != y
    errors = _table((s == f)[wrong], (t == f)[wrong])
    return errors, _table(~wrong, s == y), torch.bincount(y).double(), torch.bincount(f).double()


def _table(first: Tensor, second: Tensor) -> Tensor:
    both = torch.stack([first & second, first & ~second, ~first & second, ~first & ~second])
    return both.sum(1).double()


def conclude(errors: Tensor, rightness: Tensor, labels: Tensor, decisions: Tensor, *, seed: int) -> ErrorPredictability:
    """XEA and kappa from the counts of `tally`."""
    if float(rightness.sum()) == 0:
        raise ValueError("`labels` must have at least one position that counts, got none.")
    count = int(errors.sum())
    total = float(rightness.sum())
    accuracy = float(rightness[0] + rightness[1]) / total
    said, twin_said = _shares(errors.numpy(force=True))
    generator = np.random.default_rng(seed)
    value = float(_xea(errors.numpy(force=True)))
    reason = _why_not(count, accuracy, float(labels.max()) / total, int((decisions > 0).sum()), total, value)
    return ErrorPredictability(
        value=value if reason is None else math.nan,
        interval=_interval(_xea, errors, generator),
        agreement=said,
        twin_agreement=twin_said,
        errors=count,
        kappa=float(_kappa(rightness.numpy(force=True))),
        kappa_interval=_interval(_kappa, rightness, generator),
        accuracy=accuracy,
        reason=reason,
    )


def _shares(errors: Counts) -> tuple[float, float]:
    total = errors.sum()
    return (
        (math.nan, math.nan)
        if total == 0
        else (float(errors[:2].sum() / total), float((errors[0] + errors[2]) / total))
    )


def _xea(counts: Counts) -> Counts:
    total = counts.sum(-1)
    with np.errstate(all="ignore"):
        student, twin = (counts[..., 0] + counts[..., 1]) / total, (counts[..., 0] + counts[..., 2]) / total
        return np.where(twin < 1, (student - twin) / (1 - twin), np.nan)


def _kappa(counts: Counts) -> Counts:
    share = counts / counts.sum(-1, keepdims=True)
    observed = share[..., 0] + share[..., 3]
    first, second = share[..., 0] + share[..., 1], share[..., 0] + share[..., 2]
    expected = first * second + (1 - first) * (1 - second)
    with np.errstate(all="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _interval(
    statistic: Callable[[Counts], Counts], counts: Tensor, generator: np.random.Generator
) -> tuple[float, float]:
    """Percentiles over resampled tables: resampling examples, of which only the table matters."""
    table = counts.numpy(force=True)
    total = int(table.sum())
    if total == 0:
        return math.nan, math.nan
    values = statistic(generator.multinomial(total, table / table.sum(), size=_DRAWS).astype(np.float64))
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _why_not(errors: int, accuracy: float, commonest: float, said: int, total: float, value: float) -> str | None:
    if said < 2:
        return "the primary is constant: it always says the same"
    unlearnt = why_no_better(accuracy, commonest, total)
    if unlearnt is not None:
        return unlearnt
    if errors < LEAST_ERRORS:
        return f"the primary made {errors} errors, {LEAST_ERRORS} are needed: ask more, or harder, queries"
    return "the twin makes all of the primary's errors" if math.isnan(value) else None


def why_no_better(accuracy: float, commonest: float, total: float) -> str | None:
    """Why a model isn't surely (3 standard errors) right more often than whoever always says the commonest label."""
    if accuracy > commonest + _SURE * math.sqrt(commonest * (1 - commonest) / total):
        return None
    return f"the model is right in {accuracy:.3f}, the commonest label in {commonest:.3f}: it hasn't learnt the task"
