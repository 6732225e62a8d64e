"""Do the scores agree on which arm is more interpretable? Rank correlations, never an average of scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from legibility.tradeoff._arms import Metric, Section


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1 to 1; equal values share their mean rank.

    Returns:
        None with fewer than three values, or where all values of a side are equal.

    Raises:
        ValueError: sides of different length.

    Example:
        >>> round(spearman([1, 2, 3, 4], [10, 20, 40, 30]), 6)  # 1 - 6 (0 + 0 + 1 + 1) / (4 (16 - 1))
        0.8
    """
    if len(one) != len(other):
        raise ValueError(f"`one` and `other` must be of equal length, got {len(one)} and {len(other)}")
    if len(one) < 3:
        return None
    first, second = _ranks(one), _ranks(other)
    middle = (len(one) + 1) / 2
    products = math.fsum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    squares = [math.fsum((rank - middle) ** 2 for rank in ranks) for ranks in (first, second)]
    return products / math.sqrt(squares[0] * squares[1]) if all(squares) else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for index in order[start : end + 1]:
            ranks[index] = (start + end) / 2 + 1
        start = end + 1
    return ranks


@dataclass(frozen=True)
class RankCorrelation:
    """Two scores over the arms.

    Args:
        one: a score.
        other: another.
        rho: Spearman's rho of the arms' means, signed so that 1 means that both call the same arms more interpretable;
            None with fewer than three arms, or if a score is the same in all.
        arms: number of arms that have both.
    """

    one: Metric
    other: Metric
    rho: float | None
    arms: int


def rank_correlations(section: Section, metrics: Sequence[Metric] | None = None) -> list[RankCorrelation]:
    """Rank correlation of each two scores over the arms' means, controls left out.

    Arms are what the scores rank; seeds of one arm are not independent of each other, so they add nothing to n. With few
    arms rho says little: of five arms 12 % of all orders agree to .7 or more by chance.

    Args:
        section: from `compare`.
        metrics: scores; if None all of the section that have a direction and belong to no single family.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, kl, saving):
        ...     scores = [ScoreEntry("kl", kl, "nats", "lower", None, None, trained_on=False),
        ...               ScoreEntry("saving", saving, "share", "higher", None, None, trained_on=False)]
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("loss", 1.0, None, None, None, "test"), scores,
        ...                      CostEntry(None, None, None, None, None, {}, 1), {})
        >>> section = compare([run("plain", 3.0, 0.1), run("a", 2.0, 0.2), run("b", 1.0, 0.3)]).sections[0]
        >>> [(found.rho, found.arms) for found in rank_correlations(section)]
        [(1.0, 3)]
    """
    if metrics is None:
        metrics = [metric for metric in section.of_kind("score") if metric.direction is not None]
    arms = [arm for arm in section.arms if arm.control_of is None]
    result = []
    for place, one in enumerate(metrics):
        for other in metrics[place + 1 :]:
            pairs = [
                (mine.mean, theirs.mean)
                for arm in arms
                if (mine := arm.cells[one].value) is not None and (theirs := arm.cells[other].value) is not None
            ]
            rho = spearman([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
            if rho is not None and {one.direction, other.direction} == {"lower", "higher"}:
                rho = -rho
            result.append(RankCorrelation(one, other, rho, len(pairs)))
    return result
