"""Proximal steps: what an L1 penalty does to weights in one step, exact zeros included."""

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from legibility.losses._inputs import check_floating, check_positive, working_precision

_WEIGHTS = "floating point or complex weights"


def soft_threshold(w: Inexact[Tensor, "*shape"], threshold: float | Float[Tensor, "..."]) -> Inexact[Tensor, "*shape"]:
    r"""Moves every weight towards zero by `threshold`, and those that are nearer than that to exactly zero.

        S_t(w) = sign(w) max(|w| - t, 0) = argmin_x 1/2 |x - w|^2 + t |x|

    For complex weights the modulus shrinks and the phase stays: S_t(w) = w max(0, 1 - t / |w|). NaN stays NaN.

    Strength as a budget: thresholds add up (S_b after S_a is S_{a+b}), so between gradient steps a weight loses at most
    the sum of all thresholds. State that sum in units of the initial size c = `root_mean_square(w)` of each tensor, and
    split it over the steps in proportion to the learning rate eta:

        threshold_k = strength * c * eta_k / sum_j eta_j

    One strength then means the same at any learning rate, schedule and length of training: strength 1 can take away
    one typical initial weight in all. (Decoupled, as in AdamW: apply it after the optimizer's step, and give the same
    weights no weight decay.)

    The result keeps the dtype of `w`; bfloat16 and float16 are computed in float32 and rounded once. A threshold far
    below the spacing of such a dtype around w therefore does nothing, however often it is repeated: collect thresholds
    over several steps, or keep float32 weights.

    Args:
        w: Weights of any shape. Not modified.
        threshold: t >= 0 in units of the weights; a number, or a tensor on the device of `w` that broadcasts to
            its shape (one threshold per row, per weight...). Numbers are checked. The entries of a tensor are not, for that would
            make an accelerator wait: with negative or NaN entries the result is undefined.

    Returns:
        A new tensor of the shape and dtype of `w`.

    Raises:
        TypeError: If `w` is neither floating point nor complex, or `threshold` is a complex tensor.
        ValueError: If `threshold` is negative or NaN, or does not broadcast to the shape of `w`.

    Example:
        >>> import torch
        >>> from legibility.losses import soft_threshold
        >>> soft_threshold(torch.tensor([3.0, -2.0, 0.5]), 1.0)
        tensor([ 2., -1.,  0.])

    Source:
        Donoho & Johnstone, "Ideal spatial adaptation by wavelet shrinkage", 1994. As a step of an optimizer: Parikh &
        Boyd, "Proximal algorithms", 2014, section 6.5.2.
    """
    _check(w, threshold)
    return _shrink(working_precision(w), threshold).to(w.dtype)


def reweighted_soft_threshold(
    w: Inexact[Tensor, "*shape"], threshold: float | Float[Tensor, "..."], *, epsilon: float
) -> Inexact[Tensor, "*shape"]:
    r"""Soft threshold that spares large weights: one step of the reweighted method for `log_penalty`.

        S_{t_i}(w_i),    t_i = threshold * epsilon / (|w_i| + epsilon)

    t_i is the slope of `log_penalty` at w_i times `threshold`: the whole threshold at zero, half of it at
    |w_i| = epsilon, hardly any for |w_i| >> epsilon. The penalty is replaced by its tangent at w, so this is a step of
    majorise-minimise and not the penalty's own proximal map: where that would jump to zero, this moves there. NaN,
    dtype, complex weights and the budget of thresholds (now an upper bound) are as in `soft_threshold`.

    Args:
        w: Weights of any shape. Not modified.
        threshold: As in `soft_threshold`: a number >= 0, or an unchecked tensor that broadcasts to the shape of `w`.
        epsilon: Size at which a weight counts as large, in units of the weights, above 0.

    Returns:
        A new tensor of the shape and dtype of `w`.

    Raises:
        TypeError: If `w` is neither floating point nor complex, or `threshold` is a complex tensor.
        ValueError: If `threshold` is negative or NaN or does not broadcast to the shape of `w`, or `epsilon` is not
            finite and above 0.

    Example:
        >>> import torch
        >>> from legibility.losses import reweighted_soft_threshold
        >>> reweighted_soft_threshold(torch.tensor([3.0, -1.0, 0.25]), 1.0, epsilon=1.0)  # t = 1/4, 1/2, 4/5
        tensor([ 2.7500, -0.5000,  0.0000])

    Source:
        Candès, Wakin & Boyd, "Enhancing sparsity by reweighted l1 minimization", arXiv:0711.1612, section 2.
    """
    _check(w, threshold)
    check_positive(epsilon, "epsilon")
    weights = working_precision(w)
    share = epsilon / (weights.abs() + epsilon)
    return _shrink(weights, threshold * share).to(w.dtype)


def _check(w: Tensor, threshold: float | Tensor) -> None:
    check_floating(w, "w", _WEIGHTS, complex_too=True)
    if not isinstance(threshold, Tensor):
        if math.isnan(threshold) or threshold < 0:
            raise ValueError(f"`threshold` must be 0 or above, got {threshold}")
        return
    if threshold.is_complex():
        raise TypeError(f"`threshold` must be a number or a real tensor, got {threshold.dtype}")
    # From the right, as broadcasting goes; a threshold that is larger than `w` would enlarge the result.
    fits = threshold.ndim <= w.ndim and all(
        have in (1, want) for have, want in zip(reversed(threshold.shape), reversed(w.shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"`threshold` must broadcast to the shape of `w` {tuple(w.shape)}, got {tuple(threshold.shape)}: "
            "one per row of a matrix has shape (rows, 1)"
        )


def _shrink(weights: Tensor, threshold: float | Tensor) -> Tensor:
    if weights.is_complex():
        modulus = weights.abs()
        kept = (modulus - threshold).clamp(min=0)
        # At modulus 0 nothing is kept either: 0 / 1 instead of 0 / 0.
        return weights * (kept / modulus.masked_fill(modulus == 0, 1.0))
    # Inside the limits this is w - w, exactly zero; NaN passes through.
    return weights - torch.clamp(weights, -threshold, threshold)  # type: ignore[arg-type]
