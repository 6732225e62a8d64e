"""What a method can reach: non-dominated points, the attainment over seeds, the hypervolume of each seed.

Everything here is minimised; a score of which more is better enters with its sign turned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from legibility.tradeoff._arms import Metric, Section
from legibility.tradeoff._statistics import Estimate, estimate
from legibility.tradeoff.statistics._curves import Curve, curves

Coordinates = Sequence[float]


def pareto_front(points: Sequence[Coordinates]) -> list[int]:
    """Which points no other point beats: at least as low everywhere and lower somewhere. Equal points all stay.

    Args:
        points: coordinates of equal number, all to be minimised.

    Returns:
        Their places in `points`, rising.

    Example:
        >>> pareto_front([(1, 3), (2, 2), (2, 3), (3, 1)])
        [0, 1, 3]
    """
    return [place for place, mine in enumerate(points) if not any(_dominates(theirs, mine) for theirs in points)]


def _dominates(one: Coordinates, other: Coordinates) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def attainment(strands: Mapping[int, Sequence[Coordinates]], share: float = 0.5) -> list[tuple[float, float]]:
    r"""The corners of what at least `share` of the seeds reach: for .5 the median front, which no single lucky seed makes.

    A seed attains (l, y) if one of its points is at most l and at most y. With n seeds the front at l is

    .. math:: y(l) = v_{(k)}(l), \quad k = \lceil n \cdot share \rceil, \quad
              v_s(l) = \min \{y_i : l_i \le l, i \in \text{seed } s\}

    the k-th smallest; a staircase, given by its lower left corners.

    Args:
        strands: the (loss, score) points of each seed, both to be minimised.
        share: above 0, at most 1.

    Returns:
        Corners (l, y), l rising and y falling; empty if too few seeds have points.

    Source: Grunert da Fonseca, Fonseca and Hall, "Inferential performance assessment of stochastic optimisers and the
    attainment function" (2001).

    Example:
        >>> attainment({0: [(1, 3), (2, 1)], 1: [(1, 4), (2, 2)], 2: [(1, 9), (3, 0)]})
        [(1, 4), (2, 2), (3, 1)]
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be above 0 and at most 1, got {share}")
    needed = math.ceil(len(strands) * share - 1e-9)
    best: dict[int, float] = {}
    result: list[tuple[float, float]] = []
    everything = sorted((x, y, seed) for seed, points in strands.items() for x, y in points)
    for index, (x, y, seed) in enumerate(everything):
        best[seed] = min(y, best.get(seed, math.inf))
        if index + 1 < len(everything) and everything[index + 1][0] == x:
            continue
        if len(best) >= needed:
            reached = sorted(best.values())[needed - 1]
            if not result or reached < result[-1][1]:
                result.append((x, reached))
    return result


def hypervolume(points: Sequence[Coordinates], reference: Coordinates) -> float:
    """Volume of what the points dominate, up to `reference`; larger is better. Two objectives, or three, or any number.

    Points that don't lie below the reference in every objective add nothing.

    Args:
        points: coordinates of equal number, all to be minimised.
        reference: a fixed point; volumes of different references can't be compared.

    Example:
        >>> hypervolume([(1, 3), (2, 2), (3, 1)], (4, 4))
        6.0
        >>> hypervolume([(0, 0, 0)], (1, 2, 3))
        6.0
    """
    inside = sorted({tuple(map(float, p)) for p in points if all(a < b for a, b in zip(p, reference, strict=True))})
    return _volume(inside, reference)


def _volume(inside: Sequence[tuple[float, ...]], reference: Coordinates) -> float:
    """Slices along the first objective; `inside` is sorted by it."""
    if len(reference) == 1:
        return reference[0] - inside[0][0] if inside else 0.0
    total = []
    for place, point in enumerate(inside):
        right = inside[place + 1][0] if place + 1 < len(inside) else reference[0]
        if right > point[0]:
            rest = sorted({other[1:] for other in inside[: place + 1]})
            total.append((right - point[0]) * _volume(rest, reference[1:]))
    return math.fsum(total)


@dataclass(frozen=True)
class MethodFront:
    """What one method reaches in one score.

    Args:
        method: its name.
        curve: its runs.
        attained: corners (task loss, score) of the median attainment, in the score's own sign.
        volume: hypervolume of each seed, in units of loss times score, mean and interval.
        trials: fewest and most runs of a seed: volumes of unequal trials favour the method that tried more.
    """

    method: str
    curve: Curve
    attained: tuple[tuple[float, float], ...]
    volume: Estimate
    trials: tuple[int, int]


@dataclass(frozen=True)
class Fronts:
    """What all methods reach in one score.

    Args:
        metric: the score.
        reference: (task loss, score) of the hypervolumes: the worst of either over all runs of these methods.
        methods: in order of their first arm.
    """

    metric: Metric
    reference: tuple[float, float]
    methods: tuple[MethodFront, ...]


def fronts(section: Section, metric: Metric) -> Fronts | None:
    """Median attainment and hypervolume per seed of each method, all against one reference.

    Args:
        section: from `compare`.
        metric: a score with a direction.

    Returns:
        None if `metric` has no direction, or no method has a value of it.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> section = compare([run("plain", 1, 4), run("a-1", 2, 2), run("a-2", 3, 1), run("b", 4, 3)]).sections[0]
        >>> found = fronts(section, section.headlines[0])
        >>> found.reference, [(front.method, front.volume.mean) for front in found.methods]
        ((4.0, 3.0), [('a', 3.0), ('b', 0.0)])
    """
    if metric.direction is None:
        return None
    table = curves(section, metric)
    if not table:
        return None
    sign = 1.0 if metric.direction == "lower" else -1.0
    every = [point for curve in table for strand in curve.strands.values() for point in strand]
    worst = (float(max(point.loss for point in every)), float(max(sign * point.score for point in every)))
    methods = []
    for curve in table:
        strands = {seed: [(p.loss, sign * p.score) for p in strand] for seed, strand in curve.strands.items()}
        counts = [len(strand) for strand in strands.values()]
        methods.append(
            MethodFront(
                curve.method,
                curve,
                tuple((loss, sign * score) for loss, score in attainment(strands)),
                estimate({seed: hypervolume(strand, worst) for seed, strand in strands.items()}),
                (min(counts), max(counts)),
            )
        )
    return Fronts(metric, (worst[0], sign * worst[1]), tuple(methods))
