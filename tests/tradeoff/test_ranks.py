"""Rank correlations among scores."""

import random
from collections.abc import Callable

import pytest

from legibility.tradeoff import ControlOf, RunRecord, compare
from legibility.tradeoff.statistics import rank_correlations, spearman

Make = Callable[..., RunRecord]


def test_spearman_by_hand() -> None:
    # Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = .8.
    assert spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [3, 2, 1]) == -1.0
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1, 2], [1, 2]) is None
    with pytest.raises(ValueError, match="equal length, got 1 and 2"):
        spearman([1], [1, 2])


def test_spearman_is_scipys_with_ties_too() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(0)
    for count in (3, 8, 40):
        one, other = ([float(rng.randrange(6)) for _ in range(count)] for _ in range(2))
        one[0], other[1] = 99.0, 99.0
        assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


def test_correlations_are_of_arms_signed_by_direction_and_say_their_number(record: Make) -> None:
    runs = []
    for place, arm in enumerate(("plain", "a", "b", "c")):
        for seed in (0, 1):
            scores: dict[str, float | None] = {
                "kl": 4.0 - place,
                "zero_share": place / 10,
                "fvu": (1.0, 3.0, 2.0, 4.0)[place],
            }
            runs.append(record(arm, seed, 1.0, {**scores, "fvu": None} if arm == "c" else scores))
    untrained = ControlOf("random-init", "plain")
    runs += [record("untrained", seed, 9.0, {"kl": 0.0, "zero_share": 0.0}, control=untrained) for seed in (0, 1)]
    found = {
        (one.one.name, one.other.name): (one.rho, one.arms) for one in rank_correlations(compare(runs).sections[0])
    }
    # Lower KL and more zeros are both better: they agree. KL 4 3 2 against FVU 1 3 2: ranks 3 2 1 and 1 3 2, rho -.5.
    assert found == {
        ("kl", "zero_share"): (1.0, 4),
        ("kl", "fvu"): (pytest.approx(-0.5), 3),
        ("zero_share", "fvu"): (pytest.approx(-0.5), 3),
    }
