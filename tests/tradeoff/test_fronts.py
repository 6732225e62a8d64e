"""Fronts, attainment, hypervolume: by hand and against moocore."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from legibility.tradeoff import ControlOf, RunRecord, compare
from legibility.tradeoff.statistics import attainment, fronts, hypervolume, pareto_front

Make = Callable[..., RunRecord]


def cloud(rng: random.Random, count: int, objectives: int, grid: int = 6) -> list[tuple[float, ...]]:
    """Points on a coarse grid, so that ties and doubles are common."""
    return [tuple(float(rng.randrange(grid)) for _ in range(objectives)) for _ in range(count)]


def test_a_front_by_hand() -> None:
    assert pareto_front([]) == [] and pareto_front([(5, 5)]) == [0]
    assert pareto_front([(1, 1), (1, 1), (1, 2), (0, 3)]) == [0, 1, 3]  # equal points beat each other in nothing
    assert pareto_front([(2, 2, 2), (2, 2, 1), (3, 1, 3)]) == [1, 2]


@pytest.mark.parametrize("objectives", [2, 3])
def test_fronts_are_moocores(objectives: int) -> None:
    moocore, numpy = pytest.importorskip("moocore"), pytest.importorskip("numpy")
    rng = random.Random(objectives)
    for count in (1, 2, 7, 30):
        points = cloud(rng, count, objectives)
        expected = moocore.is_nondominated(numpy.array(points), keep_weakly=True)
        assert pareto_front(points) == list(numpy.flatnonzero(expected))


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(1, 3), (2, 2), (3, 1)], (4, 4)) == 6.0
    assert hypervolume([(1, 3), (2, 2), (3, 1), (3, 3), (2, 2)], (4, 4)) == 6.0  # beaten and double points add nothing
    assert hypervolume([(4, 0), (5, 1), (0, 4)], (4, 4)) == 0.0 and hypervolume([], (4, 4)) == 0.0
    assert hypervolume([(-1, -2)], (0, 0)) == 2.0 and hypervolume([(3,)], (5,)) == 2.0
    # Two boxes 1 x 1 x 2 and 2 x 2 x 1 that share 1 x 1 x 1.
    assert hypervolume([(1, 1, 0), (0, 0, 1)], (2, 2, 2)) == 5.0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolumes_are_moocores(objectives: int) -> None:
    moocore, numpy = pytest.importorskip("moocore"), pytest.importorskip("numpy")
    rng = random.Random(objectives)
    for count in (1, 3, 12):
        for _ in range(20):
            points = cloud(rng, count, objectives)
            reference = [4.5] * objectives
            expected = moocore.hypervolume(numpy.array(points), ref=numpy.array(reference))
            assert hypervolume(points, reference) == pytest.approx(expected)


def test_median_attainment_by_hand() -> None:
    seeds = {0: [(1, 3), (2, 1)], 1: [(1, 4), (2, 2)], 2: [(1, 9), (3, 0)]}
    # At loss 1 the second best of 3, 4, 9; at 2 of 1, 2, 9; at 3 of 0, 1, 2.
    assert attainment(seeds) == [(1, 4), (2, 2), (3, 1)]
    assert attainment(seeds, share=1.0) == [(1, 9), (3, 2)]  # what all reach
    assert attainment(seeds, share=1 / 3) == [(1, 3), (2, 1), (3, 0)]  # what one reaches
    assert attainment({}) == [] and attainment({0: [(1, 1)], 1: []}, share=1.0) == []
    with pytest.raises(ValueError, match="`share` must be above 0 and at most 1, got 0"):
        attainment(seeds, share=0)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 5, 8])
def test_median_attainment_is_moocores(seeds: int) -> None:
    moocore, numpy = pytest.importorskip("moocore"), pytest.importorskip("numpy")
    rng = random.Random(seeds)
    for count in (1, 4, 9):
        strands = {seed: cloud(rng, count, 2, grid=12) for seed in range(seeds)}
        table = numpy.array([(x, y, seed) for seed, points in strands.items() for x, y in points])
        expected = moocore.eaf(table[:, :2], sets=table[:, 2], percentiles=[50])[:, :2]
        assert attainment(strands) == sorted(map(tuple, expected.tolist()))


def test_one_lucky_seed_does_not_make_a_front() -> None:
    strands: dict[int, list[tuple[float, float]]] = {seed: [(1.0, 1.0)] for seed in range(5)}
    strands[0].append((0.1, 0.1))
    assert attainment(strands) == [(1.0, 1.0)]


def test_fronts_of_a_section_share_one_reference_and_count_trials(record: Make) -> None:
    def runs(arm: str, loss: float, share: float, **more: Any) -> list[RunRecord]:
        return [record(arm, seed, loss, {"zero_share": share + seed / 100}, **more) for seed in (0, 1)]

    untrained = ControlOf("random-init", "plain")
    every = [runs("plain", 1.0, 0.0), runs("a-1", 1.5, 0.5), runs("a-2", 2.0, 0.75), runs("b", 1.5, 0.25)]
    section = compare(sum(every, runs("untrained", 9.0, 0.9, control=untrained))).sections[0]
    (metric,) = section.headlines
    found = fronts(section, metric)
    assert found is not None and found.reference == (2.0, 0.25)  # more is better; neither plain nor untrained count
    assert [front.method for front in found.methods] == ["a", "b"]
    one, other = found.methods
    # Seed 0: from (1.5, .5), and up to .25 below: .5 wide, .25 high; seed 1 .26.
    assert dict(one.volume.values) == pytest.approx({0: 0.125, 1: 0.13}) and one.trials == (2, 2)
    assert dict(other.volume.values) == pytest.approx({0: 0.0, 1: 0.005}) and other.trials == (1, 1)
    # Half of two seeds is one of them: the better one.
    assert [loss for loss, _ in one.attained] == [1.5, 2.0]
    assert [share for _, share in one.attained] == pytest.approx([0.51, 0.76])


def test_a_score_without_direction_has_no_front(record: Make, score: Callable[..., Any]) -> None:
    runs = [record(arm, 0, 1.0, [score("rank", value, direction=None)]) for arm, value in (("plain", 1.0), ("a", 2.0))]
    section = compare(runs).sections[0]
    (metric,) = section.of_kind("score")
    assert fronts(section, metric) is None
