"""p values over seeds, and many of them at once."""

import random

import pytest

from legibility.tradeoff import estimate, t_probability
from legibility.tradeoff.statistics import holm, smallest_sign_flip_p, t_test


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 30, 101])
@pytest.mark.parametrize("t", [0.0, 0.01, 0.3, 1.0, 2.7764, 12.7, 300.0])
def test_t_probability_is_scipys(t: float, degrees: int) -> None:
    distribution = pytest.importorskip("scipy.stats").t
    assert t_probability(t, degrees) == pytest.approx(1 - 2 * distribution.sf(t, degrees), abs=1e-13)


@pytest.mark.parametrize(("t", "degrees"), [(-1.0, 3), (float("nan"), 3), (1.0, 0)])
def test_t_probability_refuses_what_has_no_meaning(t: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        t_probability(t, degrees)


def test_t_test_is_scipys_one_sample_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(0)
    for count in (2, 3, 5, 8, 40):
        values = [rng.gauss(0.5, 1) for _ in range(count)]
        expected = stats.ttest_1samp(values, 0.0).pvalue
        assert t_test(estimate(dict(enumerate(values)))) == pytest.approx(expected, abs=1e-12)


def test_an_allowance_is_taken_off_the_mean_whatever_its_sign() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [-3.0, -4.0, -6.0]
    found = estimate(dict(enumerate(values)))
    assert t_test(found, 1.5) == pytest.approx(stats.ttest_1samp(values, -1.5).pvalue)
    assert t_test(found, 4.5) == 1.0 and t_test(found, found.mean * -1) == 1.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0], None), ([2.0, 2.0], 0.0), ([0.0, 0.0], 1.0), ([1e300, 1e300], 0.0), ([-1e-300] * 3, 0.0)],
)
def test_one_seed_and_no_spread(values: list[float], expected: float | None) -> None:
    assert t_test(estimate(dict(enumerate(values)))) == expected


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04: x 4, 3, 2, 1 = .02 .03 .06 .04, and none below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0] and holm([0.0]) == [0.0]
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        holm([0.5, 1.5])


def test_holm_makes_a_false_call_in_at_most_a_twentieth_of_families() -> None:
    rng = random.Random(0)
    families = [[rng.random() for _ in range(30)] for _ in range(2000)]
    assert sum(min(ps) < 0.05 for ps in families) / 2000 > 0.75  # thirty null scores: some hit nearly always
    assert sum(min(holm(ps)) < 0.05 for ps in families) / 2000 == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("seeds", [2, 5, 6])
def test_the_smallest_sign_flip_p_is_that_of_equal_signs(seeds: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    numpy = pytest.importorskip("numpy")
    values = (numpy.arange(seeds) + 1.0,)
    found = stats.permutation_test(values, lambda x, axis: x.mean(axis), permutation_type="samples", vectorized=True)
    assert smallest_sign_flip_p(seeds) == pytest.approx(found.pvalue)
    assert smallest_sign_flip_p(1) == 1.0
