"""How far activations are from sparse, in units that shrinking them does not change; and what makes them so."""

import torch
from jaxtyping import Float
from torch import Tensor

from legibility.losses._inputs import check_floating, working_precision

_ACTIVATIONS = "floating point activations"


def activation_l1(a: Float[Tensor, "... units"]) -> Float[Tensor, ""]:
    r"""Mean absolute activation over its own root mean square, which is taken as a constant.

        mean |a| / sg(sqrt(mean a^2))

    In (0, 1]: 1 where all activations have one size, sqrt(p) where a share p has one size and the rest is 0; lower is
    sparser. Without the denominator a model could shrink its activations and grow the next weights. The denominator has
    no gradient (sg), so the gradient is that of a plain L1, sign(a) / (N rms): it presses on small activations too.
    All zero: 0.

    Args:
        a: Activations; everything is averaged together. bfloat16 and float16 are computed in float32.

    Returns:
        A scalar, in float32 (float64 for float64).

    Raises:
        TypeError: If `a` is not floating point.

    Example:
        >>> import torch
        >>> from legibility.losses import activation_l1
        >>> activation_l1(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        tensor(0.5000)

    Source: L1 on activations as in sparse coding (Olshausen and Field 1996), normalised against shrinking.
    """
    a = _checked(a)
    if a.numel() == 0:
        return a.sum()
    size = a.detach().square().mean().sqrt()
    return a.abs().mean() / torch.where(size > 0, size, 1.0)


def rectified_l1(a: Float[Tensor, "... units"]) -> Float[Tensor, ""]:
    r"""Mean of the rectified activations after each unit is brought to unit variance.

        mean_u [ mean_n r_nu / sqrt(var_n r_nu) ],    r = max(a, 0)

    A unit that is 1 with probability p and else 0 has sqrt(p / (1 - p)): about sqrt(p) where p is small, without bound
    for a unit that is always on alike; lower is sparser. Units without variance (dead, or constant) are left out. The
    variance has its gradient, so neither shrinking nor growing a unit changes the value.

    Args:
        a: Activations before or after the rectification; units last, everything before them counts as examples (n).
            bfloat16 and float16 are computed in float32.

    Returns:
        A scalar, in float32 (float64 for float64); 0 without any unit that varies.

    Raises:
        TypeError: If `a` is not floating point.

    Example:
        >>> import torch
        >>> from legibility.losses import rectified_l1
        >>> rectified_l1(torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]]))  # sqrt(.2 / .8)
        tensor(0.5000)

    Source: this project; L1 on activations of unit variance made linear neurons monosemantic where other terms did not.
    """
    a = _checked(a)
    rows = a.reshape(-1, a.shape[-1]).clamp(min=0)
    if rows.numel() == 0:
        return a.sum()
    mean = rows.mean(0)
    variance = (rows - mean).square().mean(0)
    varies = variance > 1e-12 * mean.detach().square().clamp(min=1e-30)
    each = torch.where(varies, mean / torch.where(varies, variance, 1.0).sqrt(), 0.0)
    return each.sum() / varies.sum().clamp(min=1)


def tail_energy(a: Float[Tensor, "... units"], k: int) -> Float[Tensor, ""]:
    r"""Share of each example's energy that lies outside of its k largest activations.

        mean_n [ sum_{u not in top-k(|a_n|)} a_nu^2 / sg(sum_u a_nu^2) ]

    In [0, 1 - k / units]; 0 if every example has at most k activations that are not 0; lower is sparser. The gradient
    reaches only what is outside: what `abs_top_k` would cut off. The denominator has none, so shrinking all
    activations alike gains nothing. Examples that are all zero count as 0.

    Args:
        a: Activations, units last. bfloat16 and float16 are computed in float32.
        k: How many activations of an example are free, from 1 to the number of units.

    Returns:
        A scalar, in float32 (float64 for float64).

    Raises:
        TypeError: If `a` is not floating point.
        ValueError: If `k` is not in 1 to the number of units.

    Example:
        >>> import torch
        >>> from legibility.losses import tail_energy
        >>> tail_energy(torch.tensor([[3.0, -4.0, 0.0]]), k=1)  # 9 / 25
        tensor(0.3600)

    Source: a soft form of the AbsTopK activation of Gao et al., "Weight-sparse transformers have interpretable
    circuits", 2025.
    """
    a = _checked(a)
    k = _checked_k(a, k)
    rows = a.reshape(-1, a.shape[-1])
    if rows.numel() == 0:
        return a.sum()
    energy = rows.square()
    outside = energy.scatter(1, energy.detach().topk(k, dim=1).indices, 0.0).sum(1)
    whole = energy.detach().sum(1)
    return (outside / torch.where(whole > 0, whole, 1.0)).mean()


def abs_top_k(a: Float[Tensor, "... units"], k: int) -> Float[Tensor, "... units"]:
    r"""Keeps each example's k largest activations by magnitude, with their signs, and sets the others to exactly zero.

        a_u [u in top-k(|a|)]

    For the forward pass of a model whose activations shall be sparse for good; `tail_energy` presses towards it without
    changing the model, and is 0 behind it. The gradient passes where the activation does, and is 0 elsewhere. Of
    activations that tie at the edge any may stay, so that k do.

    Args:
        a: Activations, units last. Not modified.
        k: How many stay, from 1 to the number of units.

    Returns:
        A new tensor of the shape and dtype of `a`. NaN counts as the largest, and stays.

    Raises:
        TypeError: If `a` is not floating point.
        ValueError: If `k` is not in 1 to the number of units.

    Example:
        >>> import torch
        >>> from legibility.losses import abs_top_k
        >>> abs_top_k(torch.tensor([[3.0, -4.0, 0.5]]), k=2)
        tensor([[ 3., -4.,  0.]])

    Source: the AbsTopK activation of Gao et al., "Weight-sparse transformers have interpretable circuits", 2025.
    """
    check_floating(a, "a", _ACTIVATIONS)
    largest = a.detach().abs().topk(_checked_k(a, k), dim=-1).indices
    return torch.zeros_like(a).scatter(-1, largest, a.gather(-1, largest))


def _checked_k(a: Tensor, k: int) -> int:
    if not 1 <= k <= a.shape[-1]:
        raise ValueError(f"`k` must be from 1 to the number of units {a.shape[-1]}, got {k}")
    return k


def _checked(a: Tensor) -> Tensor:
    check_floating(a, "a", _ACTIVATIONS)
    return working_precision(a)
