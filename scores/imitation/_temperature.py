"""The temperature control: one finished model, flattened to a given task loss."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from legibility.scores._inputs import check_floating, check_labels, check_mask

_TOLERANCE = 1e-6
_STEPS = 200
_PART = 512
# A slope below this share of the logits' deviation counts as none: a model without mistakes improves for ever.
_FLAT = 1e-9


def match_temperature(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    loss: float,
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
) -> float:
    """Temperature at which a finished model has a given task loss: the control that costs no training.

    Finds the flattest `softmax(logits / T)` whose mean cross-entropy on `labels` doesn't exceed `loss`. Cross-entropy
    is convex in `1 / T`, with its minimum at `T*`; above `T*` it rises towards `log K`. The result is the `T >= T*`
    with cross-entropy in `[(1 - 1e-6) loss, loss]`: softer than the model at `T*`, never worse than asked.

    If `loss` is below the cross-entropy at `T*`, no temperature reaches it and `T*` is returned: the control then has
    the larger task loss, as its own cross-entropy will show. If the logits don't tell the labels at all, `T*` is
    infinite and so is the result. If the model makes no mistake, `T*` would be 0; the search ends where sharper logits
    lower the loss no further than by a billionth.

    Args:
        logits: the model's logits, finite where `mask` is True.
        labels: the true classes.
        loss: the mean cross-entropy to match, in nats, `0 <= loss <= log K`.
        mask: positions that count; None means all.

    Returns:
        the temperature, in `(0, inf]`.

    Raises:
        TypeError: if `logits` isn't floating point or `labels` isn't an integer tensor.
        ValueError: if shapes don't fit, nothing is unmasked, a label isn't a class, logits aren't finite, or `loss` is
            not in `[0, log K]`, where no temperature leads.

    Example:
        >>> import torch
        >>> from legibility.scores import match_temperature
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> labels = torch.tensor([0, 0, 0, 0])  # right in 3 of 4
        >>> best = match_temperature(logits, labels, 0.0)  # odds 3 : 1 at T* = 2 / ln 3
        >>> round(best, 4)
        1.8205
        >>> flat = match_temperature(logits, labels, 0.6)
        >>> round(torch.nn.functional.cross_entropy(logits / flat, labels).item(), 4)
        0.6
    """
    values, targets = _check(logits, labels, mask)
    classes = values.shape[-1]
    if not 0.0 <= loss <= math.log(classes) * (1.0 + 1e-9):
        raise ValueError(
            f"`loss` must be in [0, log K] = [0, {math.log(classes):.6g}] nats, got {loss}: "
            f"no temperature takes a model over {classes} classes there."
        )

    def slope(inverse: float) -> tuple[float, float]:
        _, first, second = _moments(values, targets, inverse)
        return first + _FLAT * scale, second

    def excess(inverse: float) -> tuple[float, float]:
        value, first, _ = _moments(values, targets, inverse)
        # The aim lies inside the tolerance, so that the end of the bracket on the good side is within it.
        return loss * (1.0 - _TOLERANCE / 2) - value, -first

    # At 1 / T = 0 the variance of the logits is their own.
    _, first, variance = _moments(values, targets, 0.0)
    scale = math.sqrt(variance)
    if scale == 0.0 or first + _FLAT * scale >= 0.0:
        return math.inf
    sharp = 1.0 / scale
    while slope(sharp)[0] < 0.0:
        sharp *= 2.0
    best, _ = _bracket_root(slope, 0.0, sharp)
    if _moments(values, targets, best)[0] >= loss:
        return 1.0 / best
    return 1.0 / _bracket_root(excess, 0.0, best)[1]


def _moments(values: Tensor, targets: Tensor, inverse: float) -> tuple[float, float, float]:
    """Cross-entropy at `1 / T` and its first two derivatives in `1 / T`, in float64."""
    sums = torch.zeros(3, dtype=torch.float64, device=values.device)
    # In parts that stay in the cache: three times as fast, and no float64 copy of everything.
    for part, target in zip(torch.split(values, _PART), torch.split(targets, _PART), strict=True):
        exact = part.to(torch.float64)
        # A shift of all logits of an example changes nothing; this one makes every exponent <= 0.
        exact = exact - exact.amax(-1, keepdim=True)
        chosen = exact.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        weights = (exact * inverse).exp_()
        normaliser = weights.sum(-1)
        weights *= exact
        mean = weights.sum(-1) / normaliser
        weights *= exact
        variance = weights.sum(-1) / normaliser - mean.square()
        value = normaliser.log() - inverse * chosen
        sums += torch.stack([value.sum(), (mean - chosen).sum(), variance.sum()])
    value, first, second = (sums / len(targets)).tolist()
    return value, first, second


def _bracket_root(function: Callable[[float], tuple[float, float]], low: float, high: float) -> tuple[float, float]:
    """Narrow `[low, high]` around the root of an increasing function that returns its value and slope.

    Newton steps where they stay inside, halving elsewhere. Ends with `value(low) <= 0 <= value(high)`.
    """
    point = 0.5 * (low + high)
    for _ in range(_STEPS):
        value, slope = function(point)
        if value <= 0.0:
            low = point
        else:
            high = point
        if high - low <= 0.01 * _TOLERANCE * high:
            break
        newton = point - value / slope if slope > 0.0 else math.inf
        # Newton converges from one side; a small step beyond lets the other end of the bracket follow.
        newton += math.copysign(0.005 * _TOLERANCE * high, newton - point)
        point = newton if low < newton < high else 0.5 * (low + high)
    return low, high


def _check(logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    check_floating(logits, "logits")
    check_mask(mask, logits)
    check_labels(labels, logits, mask)
    keep = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    values, targets = logits.detach()[keep], labels[keep].long()
    if targets.numel() == 0:
        raise ValueError("`labels` must have at least one position that `mask` counts, got none.")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("`logits` must be finite where `mask` is True.")
    return values, targets
