"""How far weights are from sparse: values to report, or to minimise where exact zeros are not needed."""

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from legibility.losses._inputs import check_dims, check_floating, check_positive, working_precision

_WEIGHTS = "floating point or complex weights"


def l1_penalty(w: Inexact[Tensor, "..."]) -> Float[Tensor, ""]:
    r"""Sum of absolute weights.

        sum_i |w_i|

    Range [0, inf), in units of the weights; lower is sparser. A sum, not a mean: nothing is divided by the number of
    weights. The (sub)gradient is sign(w), 0 at 0. Descending it makes weights small but, with Adam, none exactly zero:
    `soft_threshold` does. Complex weights count by their modulus.

    Args:
        w: Weights of any shape, none at all included; bfloat16 and float16 are summed in float32.

    Returns:
        A scalar, in float32 (float64 for float64 or complex128 weights).

    Raises:
        TypeError: If `w` is neither floating point nor complex.

    Example:
        >>> import torch
        >>> from legibility.losses import l1_penalty
        >>> l1_penalty(torch.tensor([1.0, -2.0, 0.0]))
        tensor(3.)

    Source:
        Tibshirani, "Regression shrinkage and selection via the lasso", 1996.
    """
    return _checked(w).abs().sum()


def log_penalty(w: Inexact[Tensor, "..."], *, epsilon: float) -> Float[Tensor, ""]:
    r"""Sum of logarithms of absolute weights: presses on small weights and lets large ones go.

        sum_i epsilon log(1 + |w_i| / epsilon)

    Its slope in |w_i| is epsilon / (|w_i| + epsilon): 1 at zero as for `l1_penalty`, 1/2 at |w_i| = epsilon, falling to
    0. `reweighted_soft_threshold` descends it. Range [0, inf), in units of the weights; lower is sparser; never above
    `l1_penalty`, which it approaches as epsilon grows. A sum, not a mean.

    Args:
        w: Weights of any shape; bfloat16 and float16 are summed in float32; complex weights count by their modulus.
        epsilon: Size at which a weight counts as large, in units of the weights, above 0.

    Returns:
        A scalar, in float32 (float64 for float64 or complex128 weights).

    Raises:
        TypeError: If `w` is neither floating point nor complex.
        ValueError: If `epsilon` is not finite and above 0.

    Example:
        >>> import torch
        >>> from legibility.losses import log_penalty
        >>> log_penalty(torch.tensor([1.0, 0.0]), epsilon=1.0)  # log 2
        tensor(0.6931)

    Source:
        Candès, Wakin & Boyd, "Enhancing sparsity by reweighted l1 minimization", arXiv:0711.1612, section 2.
    """
    check_positive(epsilon, "epsilon")
    return epsilon * (_checked(w).abs() / epsilon).log1p().sum()


def group_l1_penalty(w: Inexact[Tensor, "..."], *, dim: int | tuple[int, ...]) -> Float[Tensor, ""]:
    r"""Sum of the groups' Euclidean norms: makes whole groups zero together.

        sum_g sqrt(|g|) ||w_g||_2

    A group g holds the |g| weights that differ only in their index along `dim`; the factor sqrt(|g|) makes groups of
    different sizes comparable. For the weight of a Linear layer (out, in), dim=1 makes the incoming weights of each
    neuron a group and dim=0 the outgoing weights of each input; for a convolution (out, in, height, width),
    dim=(1, 2, 3) makes each filter one. Range [0, inf), in units of the weights; lower is sparser. A group of zeros has
    gradient 0. With groups of one weight this is `l1_penalty`.

    Args:
        w: Weights; bfloat16 and float16 are summed in float32; complex weights count by their modulus.
        dim: The dimension or dimensions along which a group extends.

    Returns:
        A scalar, in float32 (float64 for float64 or complex128 weights).

    Raises:
        TypeError: If `w` is neither floating point nor complex.
        ValueError: If `dim` is empty, names a dimension twice, or names one that `w` lacks.

    Example:
        >>> import torch
        >>> from legibility.losses import group_l1_penalty
        >>> group_l1_penalty(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), dim=1)  # sqrt(2) * 5
        tensor(7.0711)

    Source:
        Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006.
    """
    weights = _checked(w)
    dims = check_dims(dim, weights)
    if weights.numel() == 0:
        return weights.abs().sum()
    norms: Tensor = torch.linalg.vector_norm(weights, dim=dims)
    return math.sqrt(weights.numel() / norms.numel()) * norms.sum()


def root_mean_square(w: Inexact[Tensor, "..."]) -> Float[Tensor, ""]:
    r"""Root of the mean squared weight: the size of a tensor's typical weight.

        sqrt(mean_i |w_i|^2)

    Range [0, inf), in units of the weights. Taken of the initial weights, it is the unit in which `soft_threshold`'s
    strength is stated. 0 for a tensor without weights; gradient 0 where all are zero.

    Args:
        w: Weights of any shape; bfloat16 and float16 are computed in float32; complex weights count by their modulus.

    Returns:
        A scalar, in float32 (float64 for float64 or complex128 weights).

    Raises:
        TypeError: If `w` is neither floating point nor complex.

    Example:
        >>> import torch
        >>> from legibility.losses import root_mean_square
        >>> root_mean_square(torch.tensor([1.0, -7.0]))  # sqrt((1 + 49) / 2)
        tensor(5.)
    """
    weights = _checked(w)
    norm: Tensor = torch.linalg.vector_norm(weights)
    return norm / math.sqrt(max(weights.numel(), 1))


def _checked(w: Tensor) -> Tensor:
    check_floating(w, "w", _WEIGHTS, complex_too=True)
    return working_precision(w)
