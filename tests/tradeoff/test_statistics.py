"""Means and t intervals."""

import math
import random

import pytest

from legibility.tradeoff import estimate, t_quantile


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_quantile_equals_scipy(confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in [*range(1, 41), 99, 100, 999, 1000]:
        assert t_quantile(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-9)


def test_quantile_by_hand() -> None:
    # One degree: P(|T| <= t) = 2/pi atan(t), so c = 1/2 at t = 1. Two: t / sqrt(2 + t^2) = c, so t = c sqrt(2 / (1 - c^2)).
    assert t_quantile(0.5, 1) == pytest.approx(1.0, abs=1e-12)
    assert t_quantile(0.95, 2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), abs=1e-12)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 3), (1.0, 3), (float("nan"), 3), (0.95, 0)])
def test_quantile_refuses_nonsense(confidence: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="`confidence`|`degrees`"):
        t_quantile(confidence, degrees)


def test_interval_by_hand() -> None:
    # Mean 3, s^2 = (4 + 1 + 0 + 1 + 4) / 4 = 2.5, half = 2.776445 * sqrt(2.5 / 5) = 1.963243.
    found = estimate({seed: float(seed) for seed in range(1, 6)})
    assert found.mean == 3 and found.seeds == 5 and found.sign == 1
    assert found.half_width == pytest.approx(1.963243, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((1.036757, 4.963243), abs=1e-6)


def test_interval_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(0)
    for count in range(2, 12):
        values = [rng.gauss(5, 2) for _ in range(count)]
        found = estimate(dict(enumerate(values)))
        assert (found.low, found.high) == pytest.approx(
            stats.t.interval(0.95, count - 1, found.mean, stats.sem(values)), rel=1e-9
        )


def test_one_seed_has_no_interval() -> None:
    found = estimate({4: 2.5})
    assert (found.mean, found.low, found.high, found.half_width, found.sign) == (2.5, None, None, None, None)


def test_no_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="`values` must hold at least one seed"):
        estimate({})


@pytest.mark.parametrize(
    ("values", "sign"),
    [((0.9, 1.1), 0), ((0.95, 1.05), 1), ((-0.95, -1.05), -1), ((0.0, 0.0), 0), ((3.0, 3.0), 1), ((-1.0, 1.0), 0)],
)
def test_sign_is_set_only_beyond_the_interval(values: tuple[float, float], sign: int) -> None:
    # Two seeds: half width is 12.7 * |a - b| / 2, so 1.27 and .64 around 1 in the first two.
    assert estimate(dict(enumerate(values))).sign == sign


def test_coverage_of_the_interval_by_simulation() -> None:
    # 4,000 samples of n = 4: the standard error of a share of .95 is .0034, so .935 to .965 is more than four of them.
    rng = random.Random(1)
    hits = sum(
        found.low <= 0 <= found.high
        for _ in range(4000)
        if (found := estimate({seed: rng.gauss(0, 1) for seed in range(4)})).low is not None and found.high is not None
    )
    assert 0.935 < hits / 4000 < 0.965
