"""How sure a mean over seeds makes us: p values, and what many of them at once are worth."""

import math
from collections.abc import Sequence

from legibility.tradeoff._statistics import Estimate, t_probability

ALPHA = 0.05


def t_test(found: Estimate, allowance: float = 0.0) -> float | None:
    r"""Two-sided p value of the mean being zero, by Student's t over seeds.

    .. math:: t = \frac{\max(0, |\bar{x}| - a)}{s / \sqrt{n}}, \qquad p = P(|T_{n-1}| > t)

    Args:
        found: mean over seeds, from `estimate`.
        allowance: a, a bias of unknown sign that the mean may have whatever the number of seeds; at least 0.

    Returns:
        p, 0 to 1; None with one seed. Without any spread 0 if the mean exceeds the allowance, else 1.

    Example:
        >>> from legibility.tradeoff import estimate
        >>> round(t_test(estimate({0: 1.0, 1: 2.0, 2: 3.0})), 4)  # t = 3.4641 with 2 degrees of freedom
        0.0742
        >>> t_test(estimate({0: 1.0, 1: 2.0, 2: 3.0}), allowance=2.5)
        1.0
    """
    if found.seeds < 2:
        return None
    excess = max(0.0, abs(found.mean) - allowance)
    squares = math.fsum((value - found.mean) ** 2 for value in found.values.values())
    error = math.sqrt(squares / (found.seeds - 1) / found.seeds)
    if error <= 1e-15 * abs(found.mean):
        return 0.0 if excess > 0 else 1.0
    return max(0.0, 1.0 - t_probability(excess / error, found.seeds - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Holm's step-down adjustment: calling those below .05 makes a false call in at most 5 % of families.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1) \, p_{(j)})

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).

    Args:
        p_values: p of each test, in any order, 0 to 1.

    Returns:
        The adjusted p values in the order given.

    Example:
        >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]  # 3 x .01; 2 x .03; max(.06, 1 x .04)
        [0.03, 0.06, 0.06]
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"`p_values` must lie between 0 and 1, got {wrong[0]}")
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def smallest_sign_flip_p(seeds: int) -> float:
    """The smallest two-sided p that a sign-flip test over `seeds` paired differences can reach: 2 / 2^n.

    That test assumes nothing about the noise but that each difference is as likely to have the other sign. Below six
    seeds it can't reach .05, so with fewer everything rests on the t interval's assumption of normal noise.

    Example:
        >>> [smallest_sign_flip_p(seeds) for seeds in (3, 5, 6)]
        [0.25, 0.0625, 0.03125]
    """
    if seeds < 1:
        raise ValueError(f"`seeds` must be at least 1, got {seeds}")
    return min(1.0, 2.0 / 2.0**seeds)
