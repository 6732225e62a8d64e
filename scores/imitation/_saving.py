"""Imitation saving over families, and how much of it is left for families that the primary never met."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from legibility.scores.imitation._family_imitation import PROTOCOL, FamilyImitation
from legibility.scores.imitation._queries import Queries

LEAST_FAMILIES = 3
_SURE = 20.0


@dataclass(frozen=True)
class ImitationSaving:
    """What `imitation_saving` made of several families.

    Attributes:
        median: of the twin-adjusted saving over families, higher = more legible; of the plain saving without a twin.
        best: the largest.
        plain_median: of the saving before the twin's is taken off.
        plain_best: the largest of these.
        adjusted: whether there was a twin.
        families: how many had a value.
        reason: why there is no value.
        version: of the protocol.
    """

    median: float = math.nan
    best: float = math.nan
    plain_median: float = math.nan
    plain_best: float = math.nan
    adjusted: bool = False
    families: int = 0
    reason: str | None = None
    version: str = PROTOCOL


def imitation_saving(found: Mapping[str, FamilyImitation]) -> ImitationSaving:
    """H1: how much shorter the primary's decisions become with the help of families that never trained with it.

    Median and maximum over at least 3 held-out families of `dS = S(primary) - S(labels)`. Range of `S` (-inf, 1], of
    `dS` (-inf, inf), higher = easier to learn; `dS` 0 = as easy as the task itself, below = the primary does things
    that the families don't find. A constant primary has no value; an untrained one is easy to learn and does nothing,
    so read it beside the task loss and the random-init control. Softening the answers changes nothing.

    How it can be gamed: by decisions that are simple and wrong (the twin makes that visible, as `dS` > 0 at a worse task
    loss), and by training with the families that measure: `transfer_ratio`.

    For a regression, use `regression_queries`.

    Args:
        found: of `held_out_imitation`.

    Returns:
        median and best.

    Example:
        >>> from legibility.scores import FamilyImitation, imitation_saving
        >>> savings = {"forest": .5, "linear": .7, "tree": .2}
        >>> families = {n: FamilyImitation(n, 32, 64, saving=s, adjusted_saving=s - .1) for n, s in savings.items()}
        >>> found = imitation_saving(families)
        >>> round(found.median, 2), round(found.best, 2)
        (0.4, 0.6)
    """
    plain = [family.saving for family in found.values() if math.isfinite(family.saving)]
    adjusted = [family.adjusted_saving for family in found.values() if math.isfinite(family.adjusted_saving)]
    if len(plain) < LEAST_FAMILIES:
        why = [family.reasons["saving"] for family in found.values() if "saving" in family.reasons]
        reason = f"{len(plain)} families have a value, {LEAST_FAMILIES} are needed"
        return ImitationSaving(families=len(plain), reason=f"{reason}: {why[0]}" if why else reason)
    chosen = adjusted if len(adjusted) == len(plain) else plain
    return ImitationSaving(
        median=statistics.median(chosen),
        best=max(chosen),
        plain_median=statistics.median(plain),
        plain_best=max(plain),
        adjusted=chosen is adjusted,
        families=len(plain),
    )


def transfer_ratio(held_out: Mapping[str, FamilyImitation], trained_with: Mapping[str, FamilyImitation]) -> float:
    """How much of what training-time students gain is there for others too: median `dS` of both, divided.

    Both fitted from scratch on the same queries. Near 1: the primary became easier for anybody; near 0: it adapted to
    its own students. No range: without a gain there is nothing to transfer.

    Args:
        held_out: of `held_out_imitation` with families that took no part in training, with a twin.
        trained_with: the same with the architectures that took part.

    Returns:
        the ratio; NaN unless the training-time students gain, or where a `dS` is missing.

    Example:
        >>> from legibility.scores import FamilyImitation, transfer_ratio
        >>> family = lambda name, gain: {name: FamilyImitation(name, 32, 64, adjusted_saving=gain)}
        >>> transfer_ratio(family("forest", 0.05), family("mlp", 0.2))
        0.25
    """
    gains = []
    for families in (held_out, trained_with):
        values = [family.adjusted_saving for family in families.values() if math.isfinite(family.adjusted_saving)]
        gains.append(statistics.median(values) if values else math.nan)
    return gains[0] / gains[1] if gains[1] > 0.0 else math.nan


def regression_queries(
    inputs: Tensor, outputs: Tensor, targets: Tensor | None = None, *, mask: Tensor | None = None, bins: int = 8
) -> Queries:
    """Queries of a primary that answers with numbers: its decisions are bins of them.

    Bins hold equally many of the primary's own answers; of several outputs, their first principal component is cut.
    Then these apply: saving, code length, disagreement, surplus (none of which a shift or a scale of the output
    changes), the twin (the targets, cut at the same places), and `fvu/output`, the share of the output's variance that
    a student leaves unexplained. `kl` is the cross-entropy of bins; temperature means nothing. Estimators give no
    `fvu`.

    Args:
        inputs: what the primary read, `(N, ...)`.
        outputs: what it answered, `(N,)` or `(N, outputs)`, floating point, finite.
        targets: the true values, shaped like `outputs`; None if unknown.
        mask: bool `(N,)`, the queries that count.
        bins: how many.

    Returns:
        queries for `held_out_imitation`.

    Raises:
        ValueError: for outputs of another shape or not finite, or fewer than 2 bins.

    Example:
        >>> import torch
        >>> from legibility.scores import held_out_imitation, regression_queries
        >>> from legibility.students import MLPStudent
        >>> inputs = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
        >>> found = held_out_imitation(regression_queries(inputs, inputs[:, 0] * 3 + 1), [MLPStudent()])
        >>> found["mlp"].saving > 0.3, found["mlp"].fvu["output"] < 0.1
        (True, True)
    """
    if outputs.ndim not in (1, 2) or not outputs.is_floating_point() or not bool(torch.isfinite(outputs).all()):
        raise ValueError(
            f"`outputs` must be (N,) or (N, outputs), floating point and finite, got {outputs.dtype} "
            f"{tuple(outputs.shape)}."
        )
    if targets is not None and targets.shape != outputs.shape:
        raise ValueError(
            f"`targets` must have the shape of `outputs` {tuple(outputs.shape)}, got {tuple(targets.shape)}."
        )
    if bins < 2:
        raise ValueError(f"`bins` must be at least 2, got {bins}.")
    values = outputs.detach().double().reshape(len(outputs), -1)
    mean = values.mean(0)
    axis = torch.linalg.svd(values - mean, full_matrices=False).Vh[0]
    axis = axis * axis[axis.abs().argmax()].sign()  # its sign is the library's choice
    line = (values - mean) @ axis
    edges = torch.quantile(line, torch.arange(1, bins, dtype=torch.float64, device=line.device) / bins)
    decided = torch.bucketize(line, edges)
    labels = None
    if targets is not None:
        true = targets.detach().double().reshape(len(targets), -1)
        labels = torch.bucketize((true - mean) @ axis, edges)
    logits = functional.one_hot(decided, bins).float() * _SURE
    return Queries(inputs, logits, labels, mask, taps={"output": outputs.detach().reshape(len(outputs), -1)})
