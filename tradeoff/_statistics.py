"""Means over seeds and their t intervals.

The unit of replication is the training seed. Intervals are Student's t, not bootstraps: with 3, 5 and 10 seeds a
percentile bootstrap's "95 %" covers about .75, .84 and .90 of normal noise (`tests/tradeoff/test_matched.py` holds it below t).
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t interval.

    Args:
        mean: arithmetic mean of `values`.
        low: lower end of the interval; None with one seed, which says nothing about seed noise.
        high: upper end; None with one seed.
        values: the value of each seed.
    """

    mean: float
    low: float | None
    high: float | None
    values: Mapping[int, float]

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def half_width(self) -> float | None:
        """Half the interval's width; None with one seed."""
        return None if self.high is None else self.high - self.mean

    @property
    def sign(self) -> int | None:
        """-1 or 1 if the interval lies on one side of zero, 0 if it holds zero, None with one seed.

        Example:
            >>> estimate({0: 1.0, 1: 1.2, 2: 1.1}).sign
            1
            >>> estimate({0: 1.0, 1: -1.2}).sign
            0
        """
        if self.low is None or self.high is None:
            return None
        return (self.low > 0) - (self.high < 0)


def estimate(values: Mapping[int, float]) -> Estimate:
    r"""Mean and t interval over seeds.

    .. math:: \bar{x} \pm t_{0.975,\,n-1} \; s / \sqrt{n}, \qquad s^2 = \frac{1}{n-1} \sum_i (x_i - \bar{x})^2

    Args:
        values: finite value of each seed, at least one.

    Raises:
        ValueError: no value.

    Example:
        >>> result = estimate({0: 1.0, 1: 2.0, 2: 3.0})
        >>> result.mean, round(result.low, 4), round(result.high, 4)  # 2 -+ 4.3027 / sqrt(3)
        (2.0, -0.4841, 4.4841)
        >>> estimate({7: 1.5}).low is None
        True
    """
    count = len(values)
    if count == 0:
        raise ValueError("`values` must hold at least one seed, got none")
    mean = math.fsum(values.values()) / count
    if count == 1:
        return Estimate(mean, None, None, dict(values))
    variance = math.fsum((value - mean) ** 2 for value in values.values()) / (count - 1)
    half = t_quantile(CONFIDENCE, count - 1) * math.sqrt(variance / count)
    return Estimate(mean, mean - half, mean + half, dict(values))


@functools.cache
def t_quantile(confidence: float, degrees: int) -> float:
    r"""The t that |T| stays below with probability `confidence`, for Student's T with `degrees` of freedom.

    Solves :math:`P(|T| \le t) = c` by bisection on the angle :math:`\theta = \arctan(t / \sqrt{\nu})`, for which
    the probability is a finite sum when :math:`\nu` is whole (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Args:
        confidence: c, between 0 and 1; 0.95 gives the 97.5 % quantile.
        degrees: nu, at least 1.

    Raises:
        ValueError: `confidence` or `degrees` out of range.

    Example:
        >>> round(t_quantile(0.95, 1), 4), round(t_quantile(0.95, 4), 4)
        (12.7062, 2.7764)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}")
    if degrees < 1:
        raise ValueError(f"`degrees` must be at least 1, got {degrees}")
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def t_probability(t: float, degrees: int) -> float:
    r"""Probability that |T| stays below `t`, for Student's T with `degrees` of freedom.

    Args:
        t: at least 0.
        degrees: nu, at least 1.

    Raises:
        ValueError: `t` or `degrees` out of range.

    Example:
        >>> round(t_probability(12.7062, 1), 6), round(t_probability(2.7764, 4), 5)
        (0.95, 0.95)
    """
    if not t >= 0:
        raise ValueError(f"`t` must be at least 0, got {t}")
    if degrees < 1:
        raise ValueError(f"`degrees` must be at least 1, got {degrees}")
    return _probability_within(math.atan(t / math.sqrt(degrees)), degrees)


def _probability_within(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) * tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    # Odd: sum of cos^(2k+1) (2k)!!/(2k+1)!!; even: sum of cos^(2k) (2k-1)!!/(2k)!!.
    factor = cosine if odd else 1.0
    total = factor if degrees > 1 else 0.0
    for step in range(2 + odd, degrees - 1, 2):
        factor *= (step - 1) / step * cosine**2
        total += factor
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
