"""What the page shows below its headline table: methods at equal task loss, what each can reach, how scores agree."""

from collections.abc import Iterable, Mapping, Sequence

from legibility.tradeoff._arms import Comparison, Metric, Section
from legibility.tradeoff._matched_words import matched_cautions, matched_sentences
from legibility.tradeoff._plain_table import PlainTable
from legibility.tradeoff._wording import number, signed, title, with_half_width
from legibility.tradeoff.statistics import Match, compare_at_matched_loss, fronts, rank_correlations

_FEWEST_ARMS = 4


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
    if compared:
        metrics = list(dict.fromkeys(match.metric for match in compared))
        pairs: dict[tuple[str, str], dict[Metric, Match]] = {}
        for match in compared:
            pairs.setdefault((match.method, match.other), {})[match.metric] = match
        header = ["method", "against", "at task loss", *(title(metric) for metric in metrics)]
        caption = (
            "Method minus other, means over the range of task loss that both cover, paired by seed; better or worse if"
            " the adjusted p is below .05, = no difference to be told; \u2020 trained on: no evidence. "
        ) + " ".join(matched_cautions(matches))
        yield PlainTable("At equal task loss", caption, header, [_row(pair, metrics) for pair in pairs.values()])
    elif sentences := matched_sentences(section, matches):
        yield PlainTable("At equal task loss", "Why nothing can be said.", ["reason"], [[text] for text in sentences])
    yield _reached(section)
    yield _agreement(section)


def _row(pair: Mapping[Metric, Match], metrics: Sequence[Metric]) -> list[str]:
    first = next(iter(pair.values()))
    assert first.loss is not None
    low, high = (f"{end:.3g}" for end in first.loss)
    at = low if low == high else f"{low} to {high}"
    return [first.method, first.other, at, *(_cell(pair.get(metric)) for metric in metrics)]


def _cell(match: Match | None) -> str:
    if match is None or match.difference is None:
        return "\u2013"
    unit = " pp" if match.unit == "points" else ""
    sign = "+" if match.difference.mean > 0 else ""
    difference = sign + with_half_width(match.difference, match.unit) + unit
    if match.outcome == "trained on":
        return f"{difference} \u2020"
    verdict = "=" if match.outcome == "no difference" else match.outcome
    p = "" if match.adjusted is None else f", p {max(match.adjusted, 0.001):.2g}"
    return f"{difference} ({verdict}{p})"


def _reached(section: Section) -> PlainTable:
    found = [one for metric in section.headlines if metric.direction is not None and (one := fronts(section, metric))]
    found = [one for one in found if len(one.methods) > 1]
    volumes: dict[str, dict[Metric, str]] = {}
    trials: dict[str, str] = {}
    for one in found:
        for method in one.methods:
            fewest, most = method.trials
            trials[method.method] = str(most) if fewest == most else f"{fewest} to {most}"
            volumes.setdefault(method.method, {})[one.metric] = number(method.volume.mean, method.volume.half_width)
    return PlainTable(
        "What each method can reach",
        "Hypervolume between a method's runs and the worst loss and score of all, per seed, in units of loss times score:"
        " larger reaches further. It favours the method that tried more strengths.",
        ["method", "runs of a seed", *(title(one.metric) for one in found)],
        [[name, trials[name], *(row.get(one.metric, "\u2013") for one in found)] for name, row in volumes.items()],
    )


def _agreement(section: Section) -> PlainTable:
    """The lower triangle of the matrix of rank correlations."""
    found = [one for one in rank_correlations(section) if one.rho is not None and one.arms >= _FEWEST_ARMS]
    names = list(dict.fromkeys(metric for one in found for metric in (one.one, one.other)))
    shown = {(one.other, one.one): signed(one.rho, 2) for one in found if one.rho is not None}
    counts = sorted({one.arms for one in found})
    over = " to ".join(map(str, counts[:1] + counts[1:][-1:]))
    return PlainTable(
        "Do the scores agree?",
        f"Spearman's rank correlation of the means of {over} arms; +1: both scores call the same arms more interpretable,"
        " -1: the opposite ones. Not a test: arms of one method are no independent examples.",
        ["score", *(title(metric) for metric in names[:-1])],
        [
            [title(metric), *(shown.get((metric, other), "") for other in names[:-1])]
            for place, metric in enumerate(names)
            if place
        ],
    )
