"""Which weights are the largest: a threshold on magnitudes, found by counting instead of sorting."""

import math
import struct
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardshrink

from legibility.losses._inputs import check_floating
from legibility.losses._pieces import PIECE, in_pieces

_GUESSES = 8  # after which only halving is certain to end


def magnitude_threshold(
    weights: Sequence[Float[Tensor, "..."]],
    keep: int,
    *,
    start: float | None = None,
    tolerance: float = 0.0,
    total: Callable[[Tensor], Tensor] | None = None,
) -> float:
    r"""The largest threshold t beyond which at least `keep` weights lie: |{i : |w_i| > t}| >= keep.

    Found by bisection on the count (from `start` by secants first), so nothing is sorted or copied, and counts of sharded weights can be added up over
    ranks. Without ties exactly `keep` weights lie beyond t; of weights that tie at t all do. If fewer than `keep` are
    nonzero, t is 0.

    Cost: one pass over the weights for each trial; one to three from a good `start` with a tolerance, otherwise at most 40.

    Args:
        weights: Tensors of any shapes, taken together.
        keep: How many weights to keep, >= 0. For 0, t is the largest magnitude.
        start: First trial, as the threshold of a step before.
        tolerance: Settle for a count of at most (1 + tolerance) keep.
        total: Adds a count (int64 scalar) up over ranks that hold shards; None if the weights are whole.

    Returns:
        t >= 0. NaN is not counted.

    Raises:
        TypeError: If a weight is not floating point.
        ValueError: If `keep` or `tolerance` is negative, or there are no weights.

    Example:
        >>> import torch
        >>> from legibility.losses import magnitude_threshold
        >>> w = torch.tensor([0.5, -3.0, 1.0, 2.0])
        >>> t = magnitude_threshold([w], keep=2)
        >>> w[w.abs() > t]
        tensor([-3.,  2.])

    Source:
        Magnitude pruning: Han et al., "Learning both weights and connections for efficient neural networks", 2015; kept
        at each step of training: Gao et al., "Weight-sparse transformers have interpretable circuits", 2025.
    """
    if not weights:
        raise ValueError("`weights` must hold at least one tensor, got none")
    if keep < 0 or tolerance < 0:
        raise ValueError(f"`keep` and `tolerance` must be 0 or above, got {keep} and {tolerance}")
    for weight in weights:
        check_floating(weight, "weights", "floating point weights")

    def beyond(threshold: float) -> int:
        counts = [_beyond(piece, threshold) for weight in weights for piece in in_pieces(weight.detach())]
        count = torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.long)
        return int(count if total is None else total(count))

    enough = math.floor(keep * (1 + tolerance))
    if not start and beyond(0.0) <= enough:
        return 0.0
    # Bit patterns of numbers >= 0 are ordered as the numbers: halving between them ends at neighbours.
    low, high = 0, _bits(math.inf)
    trial = _bits(start) if start else high // 2
    tried: list[tuple[int, int]] = []
    guesses = 0
    while high - low > 1:
        count = beyond(_number(trial))
        if keep <= count <= enough:
            return _number(trial)
        low, high = (trial, high) if count >= keep else (low, trial)
        tried, guesses = [*tried[-1:], (trial, count)], guesses + 1
        guess = _secant(tried, keep) if start and guesses < _GUESSES else None
        trial = guess if guess is not None and low < guess < high else (low + high) // 2
    return _number(low)


def _secant(tried: Sequence[tuple[int, int]], keep: int) -> int | None:
    """The next threshold to try: the count falls about as a power of the threshold, nearby."""
    (bits, count) = tried[-1]
    threshold = _number(bits)
    if min(count, keep) == 0 or not 0 < threshold < math.inf:
        return None
    slope = -2.0  # a Gaussian's at a density of a quarter
    if len(tried) == 2 and tried[0][1] > 0 and tried[0][1] != count and tried[0][0] > 0:
        slope = math.log(count / tried[0][1]) / math.log(threshold / _number(tried[0][0]))
    if slope >= 0:
        return None
    guess = threshold * (keep / count) ** (1 / slope)
    return _bits(guess) if 0 < guess < 3e38 else None


def _beyond(piece: Tensor, threshold: float) -> Tensor:
    if piece.device.type == "cpu" and piece.dtype == torch.float32 and piece.numel() <= PIECE:
        signs = hardshrink(piece, threshold).sign_().view(-1)
        return torch.dot(signs, signs).long()  # by far the fastest way to count; exact up to 2^24
    return (piece.abs() > threshold).count_nonzero()


def _bits(number: float) -> int:
    return int.from_bytes(struct.pack(">f", number), "big")


def _number(bits: int) -> float:
    number: float = struct.unpack(">f", bits.to_bytes(4, "big"))[0]
    return number


def hard_threshold(
    w: Float[Tensor, "rows ..."], threshold: float, *, minimum_per_row: int = 0
) -> Float[Tensor, "rows ..."]:
    r"""Sets all but the largest weights to exactly zero, and leaves those as they are.

        H_t(w) = w [|w| > t]

    A row is what shares the first index: the incoming weights of one unit, the filter of one channel. Rows of fewer than
    `minimum_per_row` weights are kept whole. Of weights that tie at the edge of a row's minimum any may stay.

    Args:
        w: Weights. Not modified.
        threshold: t >= 0, as `magnitude_threshold` finds it.
        minimum_per_row: How many of its largest weights each row keeps in any case; 0 lets whole rows go.

    Returns:
        A new tensor of the shape and dtype of `w`. NaN stays.

    Raises:
        TypeError: If `w` is not floating point.
        ValueError: If `threshold` or `minimum_per_row` is negative.

    Example:
        >>> import torch
        >>> from legibility.losses import hard_threshold
        >>> hard_threshold(torch.tensor([[3.0, 2.0], [0.5, 0.1]]), 1.0, minimum_per_row=1)
        tensor([[3.0000, 2.0000],
                [0.5000, 0.0000]])

    Source: projection onto k-sparse vectors: Blumensath & Davies, "Iterative hard thresholding for compressed sensing",
    2009; a minimum for each neuron after Gao et al. 2025.
    """
    check_floating(w, "w", "floating point weights")
    if not threshold >= 0 or minimum_per_row < 0:
        raise ValueError(f"`threshold` and `minimum_per_row` must be 0 or above, got {threshold} and {minimum_per_row}")
    kept = hardshrink(w, threshold)
    if minimum_per_row == 0 or w.numel() == 0:
        return kept
    flat = w.reshape(len(w), -1)
    largest = flat.abs().topk(min(minimum_per_row, flat.shape[1]), dim=1).indices
    return kept.reshape_as(flat).scatter(1, largest, flat.gather(1, largest)).reshape_as(w)
