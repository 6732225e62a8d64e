"""Methods at equal task loss: by hand, against scipy, and where nothing may be found."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from legibility.tradeoff import ControlOf, Metric, RunRecord, ScoreEntry, Section, compare, estimate
from legibility.tradeoff.statistics import (
    Curve,
    Match,
    Point,
    compare_at_matched_loss,
    curves,
    matched_difference,
    method_of,
    t_test,
)
from legibility.tradeoff.statistics._matched import merge_equal, pchip_slopes

Make = Callable[..., RunRecord]
KL = Metric("score", "held_out_kl", "nats", "lower", "nats")


def curve(method: str, *strands: Sequence[tuple[float, float]], **more: Any) -> Curve:
    """Seeds 0, 1, ... with their (loss, score) points."""
    return Curve(
        method, {seed: tuple(Point(*point) for point in sorted(strand)) for seed, strand in enumerate(strands)}, **more
    )


# By hand.


def test_straight_curves_by_hand() -> None:
    # a: 1 - (l - 1), b: 2 - (l - 1.1), on the overlap 1.1 to 1.2: means .85 and 1.95, for seed 1 the same + .1 and - .1.
    one = curve("a", [(1.0, 1.0), (1.1, 0.9), (1.2, 0.8)], [(1.0, 1.1), (1.1, 1.0), (1.2, 0.9)])
    other = curve("b", [(1.1, 2.0), (1.2, 1.9), (1.4, 1.7)], [(1.1, 1.9), (1.2, 1.8), (1.4, 1.6)])
    found = matched_difference(KL, one, other)
    assert found.difference is not None and found.loss == pytest.approx((1.1, 1.2))
    assert dict(found.difference.values) == pytest.approx({0: -1.1, 1: -0.9})
    assert found.bend == pytest.approx(0.0, abs=1e-12) and found.points == (3, 3)
    # Mean -1, s = .1414, standard error .1: t = 10 with one degree of freedom, p = 2 / pi * atan(1 / 10).
    assert found.p == pytest.approx(2 / math.pi * math.atan(0.1))
    assert (found.outcome, found.left_out, found.notes) == ("no difference", {}, ())


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (KL, -0.2),
        (Metric("score", "kl", "nats", "lower", "%"), -25.0),
        (Metric("score", "zero_share", "share", "higher", "points"), -20.0),
    ],
)
def test_units_of_the_difference(metric: Metric, expected: float) -> None:
    found = matched_difference(metric, curve("a", [(1.0, 0.6)]), curve("b", [(0.5, 0.7), (1.0, 0.8), (2.0, 0.9)]))
    assert found.difference is not None and found.difference.mean == pytest.approx(expected)
    assert found.unit == metric.change_unit


def test_no_percentage_of_what_is_not_positive() -> None:
    metric = Metric("score", "saving", "bits", "higher", "%")
    found = matched_difference(metric, curve("a", [(1.0, 0.5)]), curve("b", [(0.5, -0.2), (1.0, -0.25), (2.0, -0.3)]))
    assert found.unit == "bits" and found.difference is not None and found.difference.mean == pytest.approx(0.75)


def test_nothing_is_extrapolated() -> None:
    one = curve("a", [(1.0, 1.0), (1.1, 0.9), (1.2, 0.8)], [(1.0, 1.0), (1.05, 0.9), (1.1, 0.8)])
    other = curve("b", [(1.3, 1.0), (1.4, 0.9), (1.5, 0.8)], [(1.1, 1.0), (1.2, 0.9), (1.3, 0.8)])
    found = matched_difference(KL, one, other)
    assert found.left_out == {0: "task losses 1 to 1.2 and 1.3 to 1.5 don't overlap"}
    assert found.difference is not None and dict(found.difference.values) == pytest.approx(
        {1: -0.2}
    )  # they touch at 1.1
    assert found.outcome == "one seed" and found.p is None
    none = matched_difference(KL, curve("a", [(1.0, 1.0), (1.1, 0.9)]), curve("b", [(1.2, 1.0), (1.3, 0.9)]))
    assert (none.outcome, none.difference, none.loss, none.bend, none.p) == ("no overlap", None, None, None, None)
    single = matched_difference(KL, curve("a", [(1.0, 1.0)]), curve("b", [(1.2, 1.0)]))
    assert single.left_out == {0: "one strength each, at task losses 1 and 1.2: nothing to interpolate"}
    # One strength each at one loss can be compared: nothing lies between.
    same = matched_difference(KL, curve("a", [(1.0, 1.0)], [(1.0, 1.1)]), curve("b", [(1.0, 2.0)], [(1.0, 2.1)]))
    assert same.difference is not None and same.difference.mean == -1.0 and same.outcome == "better"


def test_only_seeds_of_both_are_paired() -> None:
    one = Curve("a", {seed: (Point(1.0, float(seed)),) for seed in (0, 1, 2)})
    other = Curve("b", {seed: (Point(1.0, 0.0),) for seed in (1, 2, 7)})
    found = matched_difference(KL, one, other)
    assert found.difference is not None and dict(found.difference.values) == {1: 1.0, 2: 2.0}


def test_points_at_equal_loss_count_as_their_mean() -> None:
    assert merge_equal([(2.0, 1.0), (1.0, 5.0), (2.0, 3.0)]) == ([1.0, 2.0], [5.0, 2.0])
    found = matched_difference(KL, curve("a", [(1.0, 1.0), (1.0, 3.0)]), curve("b", [(1.0, 0.5)]))
    assert found.difference is not None and found.difference.mean == 1.5


def test_two_points_say_nothing_about_a_bend_so_give_no_verdict() -> None:
    strands = [[(1.0, 1.0 + s), (1.2, 0.8 + s)] for s in (0.0, 0.01, 0.02)]
    found = matched_difference(KL, curve("a", *strands), curve("b", *([(1.1, 5.0)] for _ in strands)))
    assert found.outcome == "few strengths" and found.bend is None and found.p is not None and found.p < 0.001
    assert "a: a straight line through two points" in found.notes[0]
    # Where a point itself lies at the loss of the other nothing is drawn between points.
    at = matched_difference(KL, curve("a", *strands), curve("b", *([(1.2, 5.0)] for _ in strands)))
    assert at.outcome == "better" and at.notes == ()


def test_what_was_trained_on_is_no_evidence() -> None:
    strands = [[(1.0, 1.0 + s), (1.1, 0.9), (1.2, 0.8)] for s in (0.0, 0.01, 0.02)]
    other = curve("b", *([(1.1, 5.0)] for _ in strands))
    assert matched_difference(KL, curve("a", *strands), other).outcome == "better"
    assert matched_difference(KL, curve("a", *strands, trained_on=True), other).outcome == "trained on"
    assert matched_difference(KL, other, curve("a", *strands, trained_on=True)).outcome == "trained on"


def test_the_better_way_is_the_scores() -> None:
    low, high = (
        curve("a", *([(1.0, s)] for s in (0.1, 0.11, 0.12))),
        curve("b", *([(1.0, s)] for s in (0.9, 0.92, 0.91))),
    )
    for direction, expected in (("lower", "better"), ("higher", "worse"), (None, "different")):
        metric = Metric("score", "x", "nats", direction, "nats")  # type: ignore[arg-type]
        assert matched_difference(metric, low, high).outcome == expected


def test_a_loss_that_several_strengths_reach_is_pointed_out() -> None:
    strand = (Point(0.9, 0.8, "a-1", 1.0), Point(1.0, 1.0, "plain", 0.0), Point(1.2, 0.5, "a-2", 2.0))
    found = matched_difference(KL, Curve("a", {0: strand}), curve("b", [(1.0, 1.0)]))
    assert "a: task loss neither rises nor falls steadily with strength in 1 of 1 seeds" in found.notes[0]
    falling = tuple(Point(loss, 1.0, "w", strength) for loss, strength in ((1.0, 64.0), (1.1, 32.0), (1.2, 16.0)))
    assert matched_difference(KL, Curve("w", {0: falling}), curve("b", [(1.0, 1.0)])).notes == ()


# Against scipy.


def test_interpolation_is_scipys_pchip() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = random.Random(0)
    for count in (3, 4, 9):
        for _ in range(30):
            xs = sorted(rng.random() + place for place in range(count))
            ys = [rng.choice((0.0, 1.0, rng.gauss(0, 1))) for _ in xs]
            expected = interpolate.PchipInterpolator(xs, ys)
            assert pchip_slopes(xs, ys) == pytest.approx(expected.derivative()(xs).tolist(), abs=1e-9)
            low, high = sorted(rng.uniform(xs[0], xs[-1]) for _ in range(2))
            other = curve("b", [(low, 0.0), ((low + high) / 2, 0.0), (high, 0.0)])
            found = matched_difference(KL, curve("a", list(zip(xs, ys, strict=True))), other)
            assert found.difference is not None and found.bend is not None
            assert found.difference.mean == pytest.approx(float(expected.integrate(low, high)) / (high - low), abs=1e-9)
            straight = interpolate.make_interp_spline(xs, ys, k=1)
            lines = float(straight.integrate(low, high)) / (high - low)
            assert found.bend == pytest.approx(abs(lines - found.difference.mean), abs=1e-9)


# Where nothing may be found, and where something must be.


def experiments(
    shape: Callable[[float], float],
    losses: Sequence[float],
    other_losses: Sequence[float],
    *,
    seeds: int,
    noise: float,
    loss_noise: float = 0.01,
    gap: float = 0.0,
    count: int = 2000,
) -> list[Match]:
    """Two methods whose score is `shape(loss)` plus noise, one of them lower by `gap`; seeds shift losses of both alike."""
    rng = random.Random(1)

    def strand(grid: Sequence[float], shift: float, lower: float) -> list[tuple[float, float]]:
        there = [loss + rng.gauss(0, loss_noise) for loss in grid]
        return [(loss + shift, shape(loss) - lower + rng.gauss(0, noise)) for loss in there]

    result = []
    for _ in range(count):
        one, other = [], []
        for _ in range(seeds):
            shift = rng.gauss(0, 0.05)
            one.append(strand(losses, shift, gap))
            other.append(strand(other_losses, shift, 0.0))
        result.append(matched_difference(KL, curve("a", *one), curve("b", *other)))
    return result


def rate(found: Sequence[Match]) -> float:
    return sum(match.outcome in ("better", "worse") for match in found) / len(found)


def line(loss: float) -> float:
    return 2.0 - 3.0 * loss


def bent(loss: float) -> float:
    """Falls twentyfold from loss 1 to 1.5."""
    return math.exp(-6.0 * (loss - 1.0))


NEAR, FAR = (1.0, 1.1, 1.2, 1.3), (1.1, 1.2, 1.3, 1.5)


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("shape", [line, bent])
def test_no_difference_is_reported_where_score_depends_on_loss_alone(
    shape: Callable[[float], float], seeds: int
) -> None:
    found = experiments(shape, NEAR, FAR, seeds=seeds, noise=0.02, count=1000)
    assert rate(found) <= 0.05 + 0.0125  # two standard errors
    # The test can fail: comparing the methods' mean scores without their losses reports one every time.
    assert all(match.difference is not None for match in found)
    naive = [
        t_test(
            estimate(
                {
                    s: math.fsum(shape(x) for x in NEAR) - math.fsum(shape(x) for x in FAR) + s / 1e3
                    for s in range(seeds)
                }
            )
        )
    ]
    assert max(p for p in naive if p is not None) < 0.05


@pytest.mark.parametrize("losses", [(1.0, 1.25, 1.5), (1.0, 1.1, 1.25, 1.5)])
def test_a_coarse_grid_over_a_bent_front_is_no_difference(losses: Sequence[float]) -> None:
    # Whatever is drawn through three points of a steep curve is off to one side; with little noise that looks like a gain.
    found = experiments(bent, losses, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5), seeds=8, noise=0.003, loss_noise=0.005, count=200)
    assert rate(found) <= 0.05
    without = [t_test(match.difference) for match in found if match.difference is not None]
    assert sum(p is not None and p < 0.05 for p in without) / len(without) > 0.15  # which is what the allowance is for


@pytest.mark.parametrize("shape", [line, bent])
def test_a_difference_at_equal_loss_is_found(shape: Callable[[float], float]) -> None:
    found = experiments(shape, NEAR, FAR, seeds=8, noise=0.02, gap=0.05, count=200)
    assert rate(found) > 0.95 and {match.outcome for match in found} <= {"better", "no difference"}
    mean = math.fsum(match.difference.mean for match in found if match.difference) / len(found)
    assert mean == pytest.approx(-0.05, abs=0.003)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_intervals_at_equal_loss_cover_the_truth(seeds: int) -> None:
    found = [match.difference for match in experiments(line, NEAR, FAR, seeds=seeds, noise=0.02, gap=0.04, count=1000)]
    ends = [(one.low, one.high) for one in found if one is not None]
    covered = sum(low <= -0.04 <= high for low, high in ends if low is not None and high is not None)
    assert covered / len(found) == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_t_intervals_cover_where_percentile_bootstraps_do_not(seeds: int) -> None:
    rng = random.Random(seeds)
    covered = bootstrap = 0
    for _ in range(2000):
        values = [rng.gauss(0, 1) for _ in range(seeds)]
        found = estimate(dict(enumerate(values)))
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
    for _ in range(300):
        values = [rng.gauss(0, 1) for _ in range(seeds)]
        means = sorted(math.fsum(rng.choices(values, k=seeds)) for _ in range(400))
        bootstrap += means[10] <= 0 <= means[-11]
    assert covered / 2000 == pytest.approx(0.95, abs=0.0125)
    assert bootstrap / 300 < covered / 2000 - 0.02


# From a section.


def section_of(record: Make, arms: Mapping[str, tuple[float, float]], **more: Mapping[str, Any]) -> Section:
    """Arms at (loss, KL) over three seeds, each with a little noise of its own that no other arm shares."""
    runs = []
    for place, (arm, (loss, kl)) in enumerate(arms.items()):
        for seed in (0, 1, 2):
            wobble = 0.001 * ((place * 7 + seed * 3) % 5 - 2)
            runs.append(record(arm, seed, loss + 0.01 * seed, {"held_out_kl": kl + wobble}, **more.get(arm, {})))
    return compare(runs).sections[0]


@pytest.mark.parametrize(
    ("arm", "method", "strength"),
    [
        ("a-1", "a", 1.0),
        ("a_2", "a", 2.0),
        ("a b 3", "a b", 3.0),
        ("a=1e-3", "a", 0.001),
        ("l1-1e-3", "l1", 0.001),
        ("a@2", "a", 2.0),
        ("a-1-2", "a-1", 2.0),
        ("a-x0.5", "a", 0.5),
        ("a-0.3-x2", "a", 0.6),
        ("max-x", "max-x", None),
        *((arm, arm, None) for arm in ("plain", "l1", "resnet50", "-1", "1", "a-", "x2", "-x2x")),
    ],
)
def test_names_say_which_arms_are_one_method(arm: str, method: str, strength: float | None) -> None:
    assert method_of(arm) == (method, strength if strength is None else pytest.approx(strength))


def test_an_arm_and_multiples_of_its_strengths_are_one_method(record: Make) -> None:
    arms = {"plain": (1.0, 1.0), "l1": (1.2, 0.7), "l1-x0.5": (1.1, 0.8), "l1-x2": (1.3, 0.6)}
    mine = {arm: {"strengths": {"l1": 24.0 * times}} for arm, times in (("l1", 1.0), ("l1-x0.5", 0.5), ("l1-x2", 2.0))}
    section = section_of(record, arms, **mine)
    (found,) = curves(section, section.headlines[0])
    assert found.method == "l1"
    assert [(point.arm, point.strength) for point in found.strands[0]] == [
        ("plain", 0.0),
        ("l1-x0.5", 12.0),
        ("l1", 24.0),
        ("l1-x2", 48.0),
    ]


def test_curves_join_strength_zero_and_temperature_one(record: Make) -> None:
    arms = {
        "plain": (1.0, 1.0),
        "a-0.1": (1.1, 0.8),
        "a-0.3": (1.2, 0.7),
        "b-1": (1.1, 0.9),
        "b-2": (1.2, 0.8),
        "c-5": (1.3, 0.5),
    }
    arms |= {"warm-1": (1.1, 0.95), "warm-2": (1.2, 0.9), "untrained": (5.0, 0.1)}
    mine: dict[str, Any] = {"a-0.1": {"strengths": {"a": 0.1}}, "a-0.3": {"strengths": {"a": 0.3}}}
    mine["b-1"] = mine["b-2"] = {"strengths": {"b": 1.0}, "settings": {"lr": 0.1}}
    mine |= {f"warm-{i}": {"control": ControlOf("temperature", "plain", f"a-0.{2 * i - 1}", 1.0 + i)} for i in (1, 2)}
    mine["untrained"] = {"control": ControlOf("random-init", "plain")}
    section = section_of(record, arms, **mine)
    found = {one.method: one for one in curves(section, section.headlines[0])}
    assert list(found) == ["a", "temperature", "b", "c-5"]
    points = {name: [(point.arm, point.strength) for point in one.strands[0]] for name, one in found.items()}
    assert points["a"] == [("plain", 0.0), ("a-0.1", 0.1), ("a-0.3", 0.3)]
    assert points["temperature"] == [("plain", 1.0), ("warm-1", 2.0), ("warm-2", 3.0)]
    assert points["b"] == [("b-1", 1.0), ("b-2", 1.0)]  # other settings than plain's: it isn't their strength 0
    assert points["c-5"] == [("c-5", 5.0)]
    assert [one.ours for one in found.values()] == [True, False, True, False]
    pairs = [(match.method, match.other) for match in compare_at_matched_loss(section)]
    assert pairs == [("a", "b"), ("a", "c-5"), ("a", "temperature"), ("b", "c-5"), ("b", "temperature")]


def test_a_baseline_that_is_one_strength_of_a_method_belongs_to_it(record: Make) -> None:
    arms = {"width-64": (1.0, 1.0), "width-32": (1.1, 0.8), "width-16": (1.2, 0.7), "a-1": (1.1, 0.6)}
    runs = [record(arm, 0, loss, {"kl": kl}) for arm, (loss, kl) in arms.items()]
    section = compare(runs, baseline="width-64").sections[0]
    found = curves(section, section.headlines[0])
    assert [(one.method, one.fewest) for one in found] == [("width", 3), ("a-1", 1)]


def test_arms_of_other_terms_are_other_methods(record: Make) -> None:
    arms = {"plain": (1.0, 1.0), "x-1": (1.1, 0.8), "x-2": (1.2, 0.7)}
    section = section_of(record, arms, **{"x-1": {"strengths": {"l1": 1.0}}, "x-2": {"strengths": {"legibility": 2.0}}})
    assert [one.method for one in curves(section, section.headlines[0])] == ["x-1", "x-2"]


def test_methods_that_meet_at_their_common_start_only_are_not_compared(record: Make) -> None:
    arms = {"plain": (1.0, 1.0), "a-1": (1.1, 0.8), "a-2": (1.2, 0.7), "b-1": (0.9, 0.9), "b-2": (0.8, 0.8)}
    section = section_of(record, arms, **{arm: {"strengths": {arm[0]: 1.0}} for arm in arms if arm != "plain"})
    (match,) = compare_at_matched_loss(section)
    assert match.outcome == "no overlap" and match.left_out[0] == "they meet at plain only, which belongs to both"


def test_holm_is_over_all_tests_of_the_section_and_over_tests_only(
    record: Make, score: Callable[..., ScoreEntry]
) -> None:
    def run(arm: str, seed: int, loss: float, kl: float) -> RunRecord:
        noise = 0.003 * ((len(arm) * 7 + seed * 3) % 5 - 2)
        trained = score("trained_kl", 0.1 + noise, trained_on=arm.startswith("a"))
        entries = [score("kl", kl + noise), score("fvu", 2 * kl - noise), trained]
        strengths = {"a": float(arm[-1])} if arm.startswith("a") else {}
        return record(arm, seed, loss + 0.01 * seed, entries, strengths=strengths)

    arms = {"plain": (1.0, 1.0), "a-1": (1.1, 0.8), "a-2": (1.2, 0.7), "smooth": (1.15, 0.9), "decay": (1.05, 0.99)}
    section = compare([run(arm, seed, *found) for arm, found in arms.items() for seed in (0, 1, 2)]).sections[0]
    matches = compare_at_matched_loss(section)
    assert len(matches) == 6
    tests = [match for match in matches if match.adjusted is not None]
    assert {match.metric.name for match in tests} == {"kl", "fvu"} and len(tests) == 4
    assert {match.outcome for match in matches if match.adjusted is None} == {"trained on"}
    smallest = min(tests, key=lambda match: match.p or 0)
    assert smallest.p is not None and smallest.adjusted == pytest.approx(4 * smallest.p)
    for low, high in pairwise(sorted(tests, key=lambda match: match.p or 0)):
        assert low.adjusted is not None and high.adjusted is not None and low.adjusted <= high.adjusted
    for match in tests:
        assert (match.outcome in ("better", "worse")) == ((match.adjusted or 0) < 0.05)


def test_what_holm_takes_back_is_no_difference(record: Make) -> None:
    def run(arm: str, seed: int, kl: float, fvu: float) -> RunRecord:
        return record(arm, seed, 1.0, {"kl": kl, "fvu": fvu})

    runs = [run(arm, seed, 0.5, 0.5) for arm in ("plain", "b") for seed in (0, 1, 2)]
    runs += [run("a", seed, 0.5 * (1 - change), 0.5 + seed * 0.01) for seed, change in enumerate((0.10, 0.15, 0.09))]
    kl, fvu = compare_at_matched_loss(compare(runs).sections[0])
    # Mean -11.33, s 3.2146: t = 6.107 with two degrees of freedom, p .0258; twice that is above .05.
    assert kl.metric.name == "kl" and kl.p == pytest.approx(0.0258, abs=1e-4)
    assert kl.adjusted == pytest.approx(2 * (kl.p or 0))
    assert kl.outcome == "no difference" and fvu.outcome == "no difference"


def test_the_false_positive_trap_through_records(record: Make) -> None:
    """Arms move along one front: the table shows a change for each, at equal loss there is none."""
    rng = random.Random(0)
    runs = []
    for seed in range(8):
        for arm, strengths, loss in [("plain", {}, 1.0)] + [
            (f"{name}-{i}", {"ours": float(i)} if name == "ours" else {}, 1.0 + step * i)
            for name, step in (("ours", 0.05), ("smooth", 0.04))
            for i in (1, 2, 3, 4)
        ]:
            there = loss + rng.gauss(0, 0.004)
            kl = bent(there) + rng.gauss(0, 0.01)
            runs.append(record(arm, seed, there + 0.1 * seed, {"held_out_kl": kl}, strengths=strengths))
    section = compare(runs).sections[0]
    metric = section.headlines[0]
    naive = [section.arm(f"ours-{i}").cells[metric].change for i in (1, 2, 3, 4)]
    assert all(change is not None and change.sign == -1 for change in naive)
    (match,) = compare_at_matched_loss(section)
    assert match.outcome == "no difference" and match.points == (5, 4)


def test_one_method_alone_has_nobody_to_be_compared_with(record: Make) -> None:
    section = section_of(record, {"plain": (1.0, 1.0), "a-1": (1.1, 0.8), "a-2": (1.2, 0.7)})
    assert compare_at_matched_loss(section) == []


def test_runs_without_loss_or_value_are_no_points(record: Make) -> None:
    runs = [
        record("plain", 0, 1.0, {"kl": 1.0}),
        record("a-1", 0, None, {"kl": 1.0}),
        record("a-2", 0, 1.0, {"kl": None}),
    ]
    runs += [record("b", 0, 1.0, {"kl": 0.5})]
    section = compare(runs).sections[0]
    assert [one.method for one in curves(section, section.headlines[0])] == ["b"]
