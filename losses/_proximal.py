"""Proximal steps: what an L1 penalty, plain or of groups, does to weights in one step, exact zeros included."""

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from legibility.losses._inputs import check_dims, check_floating, check_positive, working_precision

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


def group_soft_threshold(
    w: Inexact[Tensor, "*shape"], threshold: float | Float[Tensor, "..."], *, dim: int | tuple[int, ...]
) -> Inexact[Tensor, "*shape"]:
    r"""Shortens every group of weights by the same rule, and those that are shorter than that to exactly zero.

        w_g max(0, 1 - t sqrt|g| / ||w_g||)  =  argmin_x 1/2 ||x - w_g||^2 + t sqrt|g| ||x||

    A group g holds the |g| weights that differ only in their index along `dim`, as in `group_l1_penalty`, whose
    proximal map this is: dim=1 makes the incoming weights of each neuron of a Linear layer (out, in) a group, dim=0 the
    outgoing weights of each input, dim=(1, 2, 3) the filters of a convolution. The direction of a group stays. The factor sqrt|g|
    makes t a root mean square: a group whose weights have root mean square c is zero once t >= c, whatever its
    size. Thresholds add up as those of `soft_threshold`, which this is for groups of one weight.

    The result keeps the dtype of `w`; bfloat16 and float16 are computed in float32 and rounded once. A group with a
    NaN becomes NaN; one with an infinity too, for its length is infinite.

    Args:
        w: Weights. Not modified.
        threshold: t >= 0 in units of the weights; a number, or a tensor that broadcasts to the shape of `w` and has
            size 1 along `dim` (one threshold for each group). Numbers are checked, the entries of a tensor are not.
        dim: The dimension or dimensions along which a group extends.

    Returns:
        A new tensor of the shape and dtype of `w`.

    Raises:
        TypeError: If `w` is neither floating point nor complex, or `threshold` is a complex tensor.
        ValueError: If `threshold` is negative or NaN, does not broadcast to the shape of `w` or differs within a group;
            if `dim` is empty, names a dimension twice, or names one that `w` lacks.

    Example:
        >>> import torch
        >>> from legibility.losses import group_soft_threshold
        >>> w = torch.tensor([[3.0, 4.0], [0.6, 0.8]])
        >>> group_soft_threshold(w, 0.5**0.5, dim=1)  # takes 1 from the lengths 5 and 1
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    Source:
        Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006; Parikh & Boyd,
        "Proximal algorithms", 2014, section 6.5.4.
    """
    _check(w, threshold)
    dims = check_dims(dim, w)
    if isinstance(threshold, Tensor) and any(s != 1 for s in _along(threshold, dims, w.ndim)):
        raise ValueError(
            f"`threshold` must be the same within a group: size 1 along `dim` {dim}, got {tuple(threshold.shape)}"
        )
    if w.numel() == 0:
        return w.clone()
    weights = working_precision(w)
    norms: Tensor = torch.linalg.vector_norm(weights, dim=dims, keepdim=True)
    kept = norms - threshold * math.sqrt(weights.numel() / norms.numel())
    # A length of 0 keeps nothing: 0 / 1 instead of 0 / 0. NaN passes through clamp and division.
    return (weights * (kept.clamp(min=0) / norms.masked_fill(norms == 0, 1.0))).to(w.dtype)


def _along(threshold: Tensor, dims: tuple[int, ...], ndim: int) -> list[int]:
    lacking = ndim - threshold.ndim
    return [threshold.shape[d - lacking] for d in dims if d >= lacking]


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
