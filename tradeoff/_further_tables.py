"""What the page shows below its headline table: methods at equal task loss, what each can reach, how scores agree."""

from collections.abc import Iterable

from legibility.tradeoff._arms import Comparison, Section
from legibility.tradeoff._matched_words import matched_sentences
from legibility.tradeoff._plain_table import PlainTable
from legibility.tradeoff._wording import number, title, unit_and_direction, with_half_width
from legibility.tradeoff.statistics import Match, compare_at_matched_loss, fronts, rank_correlations

_STRONG = 0.05


def further_tables(comparison: Comparison) -> dict[str | None, list[PlainTable]]:
    """The tables of each section, by its recipe.

    Args:
        comparison: from `compare`.

    Returns:
        For each recipe: methods at equal task loss (or why they can't be compared), hypervolumes, rank correlations;
        without those that there is nothing for.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, TaskEntry, compare
        >>> record = RunRecord("plain", 0, "demo", {}, [], TaskEntry("loss", 1.0, None, None, None, "test"), [],
        ...                    CostEntry(None, None, None, None, None, {}, 10), {})
        >>> further_tables(compare([record]))
        {'demo': []}
    """
    return {section.recipe: [t for t in _tables(section) if t.rows] for section in comparison.sections}


def _tables(section: Section) -> Iterable[PlainTable]:
    matches = compare_at_matched_loss(section)
    compared = [match for match in matches if match.difference is not None]
    caption = " ".join(matched_sentences(section, matches))
    if compared:
        header = ["method", "against", "score", "difference", "at task loss", "adjusted p", "verdict"]
        yield PlainTable("At equal task loss", caption, header, [_row(match) for match in compared])
    elif caption:
        yield PlainTable("At equal task loss", "What could be said, and why no more.", ["finding"], [[caption]])
    yield _reached(section)
    yield PlainTable(
        "Do the scores agree?",
        "Spearman's rank correlation of the arms' means; 1: both call the same arms more interpretable. Not a test:"
        " arms of one method are no independent examples.",
        ["score", "and score", "rho", "arms"],
        [
            [title(found.one), title(found.other), f"{found.rho:+.2f}", str(found.arms)]
            for found in rank_correlations(section)
            if found.rho is not None and found.arms >= 4
        ],
    )


def _row(match: Match) -> list[str]:
    assert match.difference is not None and match.loss is not None
    unit = " points" if match.unit == "points" else ""
    return [
        match.method,
        match.other,
        title(match.metric),
        with_half_width(match.difference, match.unit) + unit,
        f"{match.loss[0]:.4g} to {match.loss[1]:.4g}",
        "–" if match.adjusted is None else "< 0.001" if match.adjusted < 0.001 else f"{match.adjusted:.3f}",
        match.outcome,
    ]


def _reached(section: Section) -> PlainTable:
    rows = []
    for metric in section.headlines:
        found = fronts(section, metric) if metric.direction is not None else None
        for method in found.methods if found is not None and len(found.methods) > 1 else ():
            fewest, most = method.trials
            half = method.volume.half_width
            trials = str(most) if fewest == most else f"{fewest} to {most}"
            volume = number(method.volume.mean, half)
            rows.append([f"{title(metric)} ({unit_and_direction(metric)})", method.method, volume, trials])
    return PlainTable(
        "What each method can reach",
        "Hypervolume between a method's runs and the worst loss and score of all, per seed: larger reaches further. It"
        " favours the method that tried more strengths.",
        ["score", "method", "hypervolume, loss x score", "runs of a seed"],
        rows,
    )
