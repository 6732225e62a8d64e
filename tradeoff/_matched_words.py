"""The comparison at equal task loss in words, with what it can't tell and why."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from legibility.tradeoff._arms import Section
from legibility.tradeoff._wording import change, interval, seeds, title
from legibility.tradeoff.statistics import Match, MatchedOutcome, curves, smallest_sign_flip_p, t_test
from legibility.tradeoff.statistics._significance import ALPHA

ENOUGH_POINTS = 4
_FEW = 10
_TOLD: tuple[MatchedOutcome, ...] = ("better", "worse", "different")

_CLAUSES: dict[MatchedOutcome, str] = {
    "better": "better in",
    "worse": "worse in",
    "different": "different in",
    "no difference": "no difference to be told in",
    "few strengths": "no verdict on two points in",
    "one seed": "no verdict on one seed in",
    "trained on": "no evidence, because trained on, in",
}


def matched_sentences(section: Section, matches: Sequence[Match], *, brief: bool = False) -> list[str]:
    """One sentence for each pair of methods, then one for each reason to be careful.

    Args:
        section: from `compare`.
        matches: what `compare_at_matched_loss` found in it.
        brief: of more than ten pairs, only those of which something can be told, and how many others there are.

    Returns:
        Sentences; empty if the section has nothing but its baseline.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> from legibility.tradeoff.statistics import compare_at_matched_loss
        >>> def run(arm, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> section = compare([run("plain", 2.0, 0.5), run("a-1", 2.02, 0.4), run("a-2", 2.1, 0.3)]).sections[0]
        >>> print(matched_sentences(section, compare_at_matched_loss(section))[0])
        No comparison at equal task loss: it takes two methods, one of them at two strengths or more (arms named like a-0.1 and a-0.3; of a recipe, legibility sweep --strengths runs them); there is a.
    """
    pairs: dict[tuple[str, str], list[Match]] = {}
    for match in matches:
        if match.points != (1, 1):
            pairs.setdefault((match.method, match.other), []).append(match)
    if not pairs:
        return list(_nothing(section))
    told = {pair for pair, found in pairs.items() if any(match.outcome in _TOLD for match in found)}
    if not brief or len(pairs) <= _FEW:
        return [*(_sentence(found) for found in pairs.values()), *matched_cautions(matches)]
    said = [_sentence(found) for pair, found in pairs.items() if pair in told]
    others = (
        f"{len(pairs) - len(told)} of {len(pairs)} pairs: no difference to be told in any score, or no common task loss"
    )
    numbers = list(matched_cautions(matches))[:1] if said else []
    return [*said, f"{others}. The HTML report lists them, with the reasons to be careful.", *numbers]


def _nothing(section: Section) -> Iterable[str]:
    methods = dict.fromkeys(curve.method for metric in section.headlines for curve in curves(section, metric))
    if methods:
        yield (
            "No comparison at equal task loss: it takes two methods, one of them at two strengths or more (arms named"
            f" like {next(iter(methods))}-0.1 and {next(iter(methods))}-0.3; of a recipe, legibility sweep --strengths"
            f" runs them); there is {', '.join(methods)}."
        )


def _sentence(matches: Sequence[Match]) -> str:
    first = matches[0]
    found = [match for match in matches if match.difference is not None]
    if not found:
        reasons = dict.fromkeys(reason for match in matches for reason in match.left_out.values())
        why = next(iter(reasons), "no seed in common")
        more = f", and alike in the other {len(first.left_out) - 1}" if len(first.left_out) > 1 else ""
        seed = f"seed {next(iter(first.left_out))}: " if first.left_out else ""
        return f"{first.method} and {first.other} can't be compared at equal task loss ({seed}{why}{more})."
    groups: dict[MatchedOutcome, list[Match]] = {}
    for match in found:
        groups.setdefault(match.outcome, []).append(match)
    clauses = []
    for outcome, text in _CLAUSES.items():
        if outcome in groups:
            clauses.append(f"{text} {', '.join(_number(match) for match in groups[outcome])}")
    most = max(found, key=lambda match: match.difference.seeds if match.difference else 0)
    assert most.difference is not None and most.loss is not None
    low, high = (f"{end:.4g}" for end in most.loss)
    where = low if low == high else f"{low} to {high}"
    return f"{first.method} against {first.other}, at task loss {where}: {'; '.join(clauses)}{_left_out(most)}."


def _number(match: Match) -> str:
    assert match.difference is not None
    metric = replace(match.metric, change_unit=match.unit)
    text = f"{title(metric)} {change(match.difference, metric).partition(' ±')[0]}"
    suffix = {"%": " %", "points": " pp"}.get(match.unit, f" {match.unit}".rstrip())
    text = text if text.endswith(suffix) else text + suffix
    if match.difference.low is None:
        return text
    spread = f"{interval(match.difference, metric)}"
    certain = "" if match.adjusted is None else f", p {_p(match.adjusted)}"
    return f"{text} ({spread}{certain})"


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def _left_out(match: Match) -> str:
    assert match.difference is not None
    used = seeds(match.difference.seeds)
    if not match.left_out:
        return f" ({used})"
    listed = ", ".join(map(str, match.left_out))
    return f" ({used}; without seed {listed}, where {next(iter(match.left_out.values()))})"


def matched_cautions(matches: Sequence[Match]) -> Iterable[str]:
    """How to read the numbers, and one sentence for each reason to be careful."""
    tests = sum(match.adjusted is not None for match in matches)
    if tests:
        yield (
            "In brackets: 95 % t interval over seeds and p after Holm's adjustment over"
            f" {f'all {tests} tests' if tests > 1 else 'the 1 test'} at equal task loss."
        )
    counts = [
        match.difference.seeds for match in matches if match.difference is not None and match.difference.seeds > 1
    ]
    if counts and smallest_sign_flip_p(min(counts)) >= ALPHA:
        yield (
            f"With {min(counts)} seeds a sign-flip test, which assumes nothing about the noise, can't go below p ="
            f" {smallest_sign_flip_p(min(counts)):.3g}; it takes 6 seeds to reach .05. These p values lean on normal noise."
        )
    points = {match.method: match.points[0] for match in matches} | {match.other: match.points[1] for match in matches}
    few = sorted(method for method, count in points.items() if 1 < count < ENOUGH_POINTS)
    if few:
        yield (
            f"Few points of {', '.join(few)}: between strengths curves are drawn, not measured, and where they bend the"
            f" intervals are too narrow. {ENOUGH_POINTS} strengths or more would do."
        )
    used = {name for match in matches if match.difference is not None for name in (match.method, match.other)}
    if single := sorted(method for method, count in points.items() if count == 1 and method in used):
        yield f"At one strength only, so compared at that run's task loss: {', '.join(single)}."
    if (
        len(
            alone := sorted(name for match in matches if match.points == (1, 1) for name in (match.method, match.other))
        )
        > 1
    ):
        yield f"Not compared with each other, for want of a second strength: {', '.join(dict.fromkeys(alone))}."
    if bent := dict.fromkeys(f"{match.method} and {match.other}" for match in matches if _bends(match)):
        yield (
            f"Between {'; between '.join(bent)}: a tenth or more of a difference depends on how the curves are drawn"
            " between their strengths; the tests allow for it."
        )
    yield from (
        f"{note[0].upper()}{note[1:]}." for note in dict.fromkeys(note for match in matches for note in match.notes)
    )


def _bends(match: Match) -> bool:
    """Whether a difference that stands out from seed noise is in good part a matter of how the curves are drawn."""
    found = match.difference
    if found is None or match.adjusted is None or match.bend is None or match.bend <= 0.1 * abs(found.mean):
        return False
    alone = t_test(found)
    return alone is not None and alone < ALPHA
