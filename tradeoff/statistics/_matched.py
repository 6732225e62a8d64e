"""Two methods at equal task loss: their curves, interpolated where both have been, subtracted seed by seed.

A method that moves along the same front as another is not more interpretable, it is at another place of that front.
Comparing scores without looking at the loss calls such a difference found every time; comparing at equal loss does not.

Simulated (`benchmarks/matched_loss.py`, 2,000 experiments each; 4 and 6 strengths, 3, 5 and 8 seeds; a straight front and
one that falls twentyfold), where the score depends on the loss alone: a difference is called in .017 to .042 (nominal
.05), without looking at the loss in all; the 95 % intervals cover a true difference in .943 to .951. Three strengths draw
the bent front too badly for that: intervals cover .93, .91 and .88 with 3, 5 and 8 seeds, which `Match.bend` makes up for
in the test only (.02 called).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal

from legibility.tradeoff._arms import Metric, Section
from legibility.tradeoff._statistics import Estimate, estimate
from legibility.tradeoff.statistics._curves import Curve, Point, curves
from legibility.tradeoff.statistics._significance import ALPHA, holm, t_test

FEWEST_POINTS = 3

MatchedOutcome = Literal[
    "better", "worse", "different", "no difference", "trained on", "few strengths", "one seed", "no overlap"
]


@dataclass(frozen=True)
class Match:
    """One method against another in one score, at equal task loss.

    Args:
        metric: the score.
        method: name of the method in question.
        other: name of the method that it is held against.
        difference: method minus other, per seed, in `unit`: 100 (m / o - 1) in %, 100 (m - o) in percentage points for
            shares, m - o else, of the means m and o over the common range of task loss. None if no seed has one.
        unit: `"%"`, `"points"` or the score's own.
        loss: the range of task loss compared, mean over seeds of either end.
        bend: by how much the difference changes if the points are joined by straight lines, in `unit`: an allowance for
            what interpolation may get wrong; None if a curve has two points, which say nothing about how it bends.
        points: fewest points that a seed has, of method and other.
        p: two-sided p value of the difference beyond `bend`, by Student's t over seeds.
        adjusted: p after Holm's adjustment over all tests of the section; None outside a family.
        outcome: `"better"`, `"worse"` (for a score without direction `"different"`): Holm's p is below .05;
            `"no difference"`: it is not; `"trained on"`: one of the two was trained on this score, which is no evidence
            and no test; `"few strengths"`: a curve drawn through two points only, no test either; `"one seed"`;
            `"no overlap"`.
        left_out: why seeds that both methods have are not in it.
        notes: what to know before trusting it.
    """

    metric: Metric
    method: str
    other: str
    difference: Estimate | None
    unit: str
    loss: tuple[float, float] | None
    bend: float | None
    points: tuple[int, int]
    p: float | None
    adjusted: float | None
    outcome: MatchedOutcome
    left_out: Mapping[int, str]
    notes: tuple[str, ...] = ()


def compare_at_matched_loss(section: Section, metrics: Sequence[Metric] | None = None) -> list[Match]:
    r"""Every method under test against every other, at equal task loss, in the headline scores.

    Methods under test are those whose records hold strengths of terms; each is held against all other methods of the
    section (temperature, label smoothing, ...). Without any, all pairs. A gain is a gain over *these*, not over a
    baseline at another loss. Holm's adjustment is over all tests returned: all pairs, all scores.

    Args:
        section: from `compare`.
        metrics: scores; the section's headlines if None.

    Returns:
        One `Match` for each pair and score that both methods have; pairs in order of methods. Empty with one method.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, seed, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl + 0.01 * seed, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, seed, "demo", {}, [], TaskEntry("loss", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> loss_and_kl = {"plain": (2.0, 1.0), "a-1": (2.1, 0.8), "a-2": (2.2, 0.6), "b-1": (2.1, 0.9), "b-2": (2.2, 0.8)}
        >>> runs = [run(arm, seed, *found) for arm, found in loss_and_kl.items() for seed in (0, 1, 2)]
        >>> match, = compare_at_matched_loss(compare(runs).sections[0])
        >>> match.method, match.other, round(match.difference.mean, 2)  # .7 against .85 on average, each + .01
        ('a', 'b', -17.44)
    """
    found: list[Match] = []
    for metric in section.headlines if metrics is None else metrics:
        table = curves(section, metric)
        for one, other in _pairs(table):
            found.append(matched_difference(metric, one, other))
    order = {name: place for place, name in enumerate(dict.fromkeys(match.method for match in found))}
    found.sort(key=lambda match: (order[match.method], match.other))
    return _adjusted(found)


def _pairs(table: Sequence[Curve]) -> Iterable[tuple[Curve, Curve]]:
    tested = [curve for curve in table if curve.ours]
    if not tested:
        return combinations(table, 2)
    others = [curve for curve in table if not curve.ours]
    return [*((one, other) for one in tested for other in others), *combinations(tested, 2)]


def _adjusted(found: Sequence[Match]) -> list[Match]:
    """Holm's adjustment over what is a test: two seeds or more, not trained on, bends known."""
    tests = [
        place for place, match in enumerate(found) if match.outcome in ("better", "worse", "different", "no difference")
    ]
    values = [found[place].p for place in tests]
    result = list(found)
    for place, adjusted in zip(tests, holm([value for value in values if value is not None]), strict=True):
        result[place] = replace(found[place], adjusted=adjusted, outcome=_outcome(found[place], adjusted))
    return result


def _outcome(match: Match, p: float) -> MatchedOutcome:
    if p >= ALPHA or match.difference is None:
        return "no difference"
    if match.metric.direction is None:
        return "different"
    return "better" if (match.difference.mean < 0) == (match.metric.direction == "lower") else "worse"


def matched_difference(metric: Metric, one: Curve, other: Curve) -> Match:
    r"""Holds `one` against `other` at equal task loss, one test by itself.

    Per seed both strands become functions of the loss l: monotone cubics (PCHIP) through the points, straight between
    two, never beyond the ends; points at equal loss count as their mean. Over the range [a, b] that both cover

    .. math:: m = \frac{1}{b - a} \int_a^b y_{one}(l) \, dl, \qquad o = \frac{1}{b - a} \int_a^b y_{other}(l) \, dl

    and where a = b (one point only) m and o are the values there. The seed's difference is that of m and o. What is
    drawn between points is off to one side where the truth bends, whatever the number of seeds; `Match.bend` is what
    straight lines would change, and the test asks whether the mean exceeds that.

    Args:
        metric: the score; `change_unit` says in what the difference is taken.
        one: the method in question.
        other: the method that it is held against.

    Returns:
        The match, `adjusted` None and `outcome` by the unadjusted p.

    Example:
        >>> kl = Metric("score", "held_out_kl", "nats", "lower", "%")
        >>> line = (Point(1.0, 0.8), Point(1.1, 0.6), Point(1.2, 0.4))
        >>> strand = Curve("a", {0: line, 1: line})
        >>> match = matched_difference(kl, strand, Curve("b", {0: (Point(1.05, 1.0),), 1: (Point(1.15, 1.0),)}))
        >>> {seed: round(value, 6) for seed, value in match.difference.values.items()}
        {0: -30.0, 1: -50.0}
    """
    pairs: dict[int, tuple[float, float]] = {}
    straight: dict[int, tuple[float, float]] = {}
    ranges: list[tuple[float, float]] = []
    left_out: dict[int, str] = {}
    for seed in sorted(one.strands.keys() & other.strands.keys()):
        overlap = _overlap(one.strands[seed], other.strands[seed])
        if isinstance(overlap, str):
            left_out[seed] = overlap
            continue
        mine, theirs = _mean(one.strands[seed], *overlap), _mean(other.strands[seed], *overlap)
        pairs[seed], straight[seed] = (mine[0], theirs[0]), (mine[1], theirs[1])
        ranges.append(overlap)
    unit = metric.change_unit
    if unit == "%" and any(theirs <= 0 for _, theirs in (*pairs.values(), *straight.values())):
        unit = metric.unit
    found = {seed: _change(unit, metric, *pair) for seed, pair in pairs.items()}
    difference = estimate(found) if found else None
    bends = [_change(unit, metric, *pair) - found[seed] for seed, pair in straight.items()]
    bend = abs(math.fsum(bends) / len(bends)) if bends else None
    two_points = [
        curve.method for curve in (one, other) if _interpolated(curve, pairs, ranges) and curve.fewest < FEWEST_POINTS
    ]
    match = Match(
        metric,
        one.method,
        other.method,
        difference,
        unit,
        _mean_range(ranges),
        None if two_points else bend,
        (one.fewest, other.fewest),
        None if difference is None else t_test(difference, bend or 0.0),
        None,
        "no difference",
        left_out,
        tuple(_notes(one, other, two_points)),
    )
    if difference is None:
        return replace(match, outcome="no overlap")
    if match.p is None:
        return replace(match, outcome="one seed")
    if one.trained_on or other.trained_on:
        return replace(match, outcome="trained on")
    if two_points:
        return replace(match, outcome="few strengths")
    return replace(match, outcome=_outcome(match, match.p))


def _change(unit: str, metric: Metric, mine: float, theirs: float) -> float:
    if unit == "%":
        return 100.0 * (mine - theirs) / theirs
    return (100.0 if metric.unit == "share" else 1.0) * (mine - theirs)


def _overlap(one: Sequence[Point], other: Sequence[Point]) -> tuple[float, float] | str:
    low = max(one[0].loss, other[0].loss)
    high = min(one[-1].loss, other[-1].loss)
    if low > high and len(one) == len(other) == 1:
        return f"one strength each, at task losses {_span(one)} and {_span(other)}: nothing to interpolate"
    if low > high:
        return f"task losses {_span(one)} and {_span(other)} don't overlap"
    mine, theirs = ([point.arm for point in strand if low <= point.loss <= high] for strand in (one, other))
    if low == high and mine == theirs and mine[0]:
        return f"they meet at {mine[0]} only, which belongs to both"
    return low, high


def _span(strand: Sequence[Point]) -> str:
    low, high = strand[0].loss, strand[-1].loss
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _interpolated(curve: Curve, seeds: Iterable[int], ranges: Sequence[tuple[float, float]]) -> bool:
    """Whether some value of the curve lies between two of its points."""
    return any(
        low < high or all(point.loss != low for point in curve.strands[seed])
        for seed, (low, high) in zip(seeds, ranges, strict=True)
    )


def _mean_range(ranges: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    if not ranges:
        return None
    return math.fsum(low for low, _ in ranges) / len(ranges), math.fsum(high for _, high in ranges) / len(ranges)


def _notes(one: Curve, other: Curve, two_points: Sequence[str]) -> Iterable[str]:
    if two_points:
        yield f"{' and '.join(two_points)}: a straight line through two points, which may bend in truth"
    for curve in (one, other):
        turning = [seed for seed, strand in curve.strands.items() if _turns(strand)]
        if turning:
            yield (
                f"{curve.method}: task loss neither rises nor falls steadily with strength in {len(turning)} of"
                f" {len(curve.strands)} seeds, so one loss belongs to several strengths"
            )


def _turns(strand: Sequence[Point]) -> bool:
    known = [point for point in strand if point.strength is not None]
    strengths = [point.strength for point in sorted(known, key=lambda point: point.loss) if point.strength is not None]
    return len(strengths) > 2 and strengths not in (sorted(strengths), sorted(strengths, reverse=True))


def _mean(strand: Sequence[Point], low: float, high: float) -> tuple[float, float]:
    """Mean of the strand over [low, high], by the monotone cubic and by straight lines."""
    xs, ys = merge_equal([(point.loss, point.score) for point in strand])
    straight = _mean_of(lambda x, i: _line(xs, ys, x, i), xs, low, high)
    if len(xs) < 3:
        return straight, straight
    slopes = pchip_slopes(xs, ys)
    return _mean_of(lambda x, i: _cubic(xs, ys, slopes, x, i), xs, low, high), straight


def merge_equal(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points in order of x; those at equal x become one at their mean y."""
    by_x: dict[float, list[float]] = {}
    for x, y in sorted(points):
        by_x.setdefault(x, []).append(y)
    return list(by_x), [math.fsum(ys) / len(ys) for ys in by_x.values()]


def _mean_of(curve: Callable[[float, int], float], xs: Sequence[float], low: float, high: float) -> float:
    """Mean over [low, high] of a piecewise polynomial of degree 3 at most, for which Simpson's rule is exact."""
    if low == high:
        return curve(low, next((i for i, (_, right) in enumerate(pairwise(xs)) if low <= right), 0))
    total = []
    for i, (left, right) in enumerate(pairwise(xs)):
        a, b = max(left, low), min(right, high)
        if a < b:
            total.append((b - a) / 6 * (curve(a, i) + 4 * curve((a + b) / 2, i) + curve(b, i)))
    return math.fsum(total) / (high - low)


def _line(xs: Sequence[float], ys: Sequence[float], x: float, i: int) -> float:
    if len(xs) == 1:
        return ys[0]
    share = (x - xs[i]) / (xs[i + 1] - xs[i])
    return (1 - share) * ys[i] + share * ys[i + 1]


def _cubic(xs: Sequence[float], ys: Sequence[float], slopes: Sequence[float], x: float, i: int) -> float:
    width = xs[i + 1] - xs[i]
    t = (x - xs[i]) / width
    return (
        (1 + 2 * t) * (1 - t) ** 2 * ys[i]
        + t * (1 - t) ** 2 * width * slopes[i]
        + t**2 * (3 - 2 * t) * ys[i + 1]
        + t**2 * (t - 1) * width * slopes[i + 1]
    )


def pchip_slopes(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Slopes of the monotone piecewise cubic through three points or more, x strictly rising.

    Source: Fritsch and Butland, "A method for constructing local monotone piecewise cubic interpolants" (1984); at the
    ends the three-point formula, limited so that the curve doesn't turn.
    """
    widths = [b - a for a, b in pairwise(xs)]
    rises = [(b - a) / width for (a, b), width in zip(pairwise(ys), widths, strict=True)]
    inner = []
    for (h0, h1), (s0, s1) in zip(pairwise(widths), pairwise(rises), strict=True):
        if s0 * s1 <= 0:
            inner.append(0.0)
        else:
            w0, w1 = 2 * h1 + h0, h1 + 2 * h0
            inner.append((w0 + w1) / (w0 / s0 + w1 / s1))
    first = _end_slope(widths[0], widths[1], rises[0], rises[1])
    last = _end_slope(widths[-1], widths[-2], rises[-1], rises[-2])
    return [first, *inner, last]


def _end_slope(h0: float, h1: float, s0: float, s1: float) -> float:
    slope = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
    if slope * s0 <= 0:
        return 0.0
    if s0 * s1 <= 0 and abs(slope) > 3 * abs(s0):
        return 3 * s0
    return slope
