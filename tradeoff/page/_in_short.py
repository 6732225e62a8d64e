"""What a comparison says, in a few sentences, before any table: by outcome, the guards that tripped, the costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from legibility.tradeoff._arms import Arm, Metric, Section
from legibility.tradeoff._statistics import Estimate
from legibility.tradeoff._verdicts import Outcome, judge
from legibility.tradeoff._wording import change, listed, seeds, signed_change, title
from legibility.tradeoff.page._grouping import groups

# A guard that moved by more than this share of the baseline's, beyond seed noise, is pointed out.
GUARD_ALARM = 20.0
_NAMED = 6
_SIZELESS: tuple[Outcome, ...] = ("missing", "no difference")

_MEANINGS: dict[Outcome, str] = {
    "gain": "Better than the baseline, and than its control or at a better task loss; sure among all comparisons here.",
    "unsure": "The same by each interval for itself, but chance alone would show some such among so many comparisons.",
    "no gain over control": "Better than the baseline, but its control at the same task loss does as well.",
    "unmatched": "Better, but at a task loss that no control stands at and that isn't surely lower: by itself no gain.",
    "trained on": "Better at what the run was trained on: no evidence.",
    "worse": "Worse than the baseline beyond seed noise.",
    "changed": "Different from the baseline beyond seed noise; neither way is better.",
    "no difference": "No difference beyond seed noise.",
    "one seed": "Only one seed: nothing can be said about noise.",
    "missing": "Not measured, or without a baseline of the same seed.",
}


@dataclass(frozen=True)
class Finding:
    """One outcome: what it means, and of which arms it holds, with what is to be said of them."""

    outcome: Outcome
    meaning: str
    lines: tuple[tuple[str, str], ...]


def findings(section: Section) -> list[Finding]:
    """The outcomes that occur, gains first; arms of which the same scores are to be named share a line.

    Of many arms, those of one method share a line, which says at how many of its strengths the outcome holds.
    """
    trained = [arm for arm in section.arms if arm.control_of is None and arm.name != section.baseline]
    outcomes = {arm.name: {metric: judge(section, arm, metric) for metric in section.headlines} for arm in trained}
    lines = _by_method if len(trained) > _NAMED + 2 else _by_scores
    return [
        Finding(outcome, meaning, tuple(lines(section, trained, outcomes, outcome)))
        for outcome, meaning in _MEANINGS.items()
        if any(outcome in found.values() for found in outcomes.values())
    ]


_Outcomes = Mapping[str, Mapping[Metric, Outcome]]


def _by_scores(
    section: Section, trained: Sequence[Arm], outcomes: _Outcomes, outcome: Outcome
) -> Iterator[tuple[str, str]]:
    shared: dict[tuple[Metric, ...], list[Arm]] = {}
    for arm in trained:
        if metrics := tuple(metric for metric, found in outcomes[arm.name].items() if found == outcome):
            shared.setdefault(metrics, []).append(arm)
    for metrics, arms in shared.items():
        said = [_moved(section, arms, metric, outcome) for metric in metrics]
        yield listed([arm.name for arm in arms]), _at_loss(section, arms, outcome) + listed(said)


def _by_method(
    section: Section, trained: Sequence[Arm], outcomes: _Outcomes, outcome: Outcome
) -> Iterator[tuple[str, str]]:
    for group in groups(section):
        there = [arm for arm in group.arms if outcome in outcomes.get(arm.name, {}).values()]
        if not there:
            continue
        said = []
        for metric in section.headlines:
            arms = [arm for arm in there if outcomes[arm.name][metric] == outcome]
            count = f" at {len(arms)} of {len(group.arms)} strengths" if len(group.arms) > 1 else ""
            if arms:
                said.append(f"{_moved(section, arms, metric, outcome)}{count}")
        yield group.name, _at_loss(section, there, outcome) + listed(said)


def _at_loss(section: Section, arms: Sequence[Arm], outcome: Outcome) -> str:
    if outcome in _SIZELESS:
        return ": "
    loss = _range([arm.cells[section.task_loss].change for arm in arms], section.task_loss)
    return f", at {loss} task loss: " if loss else ": "


def _moved(section: Section, arms: Sequence[Arm], metric: Metric, outcome: Outcome) -> str:
    """The score, by how much it changed, and how much of that is beyond controls."""
    if outcome in _SIZELESS:
        return title(metric)
    gains = [gain for arm in arms for gain in _gains(section, arm, metric)] if outcome == "gain" else []
    beyond = f" ({_range(gains, metric).replace(' %', ' pp')} beyond control)" if gains else ""
    return f"{title(metric)} {_range([arm.cells[metric].change for arm in arms], metric)}{beyond}"


def _gains(section: Section, arm: Arm, metric: Metric) -> list[Estimate]:
    found = arm.cells[metric].gains or {}
    return [found[one.name] for one in section.controls_of(arm.name) if one.name in found]


def _range(found: Sequence[Estimate | None], metric: Metric) -> str:
    """Smallest and largest mean change, such as `"-30.9 to -12.0 %"`; one if all are equal as shown."""
    known = sorted((one for one in found if one is not None), key=lambda one: one.mean)
    if not known:
        return ""
    low, high = signed_change(known[0], metric), signed_change(known[-1], metric)
    return high if low == high else f"{low.partition(' ')[0]} to {high}"


def compared(section: Section) -> str:
    """What was compared with what, on which data."""
    records = [record for arm in section.arms for record in arm.records]
    controls = sum(arm.control_of is not None for arm in section.arms)
    arms = len(section.arms) - controls
    count = {len(arm.records) for arm in section.arms}
    each = f"{seeds(count.pop())} each" if len(count) == 1 else f"{min(count)} to {seeds(max(count))} each"
    parts = f"{arms} arm{'s'[: arms > 1]}" + (f" and {controls} control{'s'[: controls > 1]}" if controls else "")
    runs = f"{len(records):,} run{'s'[: len(records) > 1]}: {parts}, {each}, compared with {section.baseline} seed by seed."
    losses = listed(sorted({record.task.name for record in records}))
    data = sorted(
        {
            f"{record.task.source} data" + (f" ({record.task.examples:,} examples)" if record.task.examples else "")
            for record in records
        }
    )
    days = sorted({record.created[:10] for record in records})
    made = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{runs} Task loss is {losses} on {listed(data)}. Measured {made}."


def has_tripped(arm: Arm, metric: Metric) -> bool:
    """Whether the guard `metric` of `arm` is far from the baseline's, beyond seed noise."""
    moved = arm.cells[metric].change
    if metric.kind != "guard" or moved is None or metric.change_unit != "%":
        return False
    return moved.sign != 0 and abs(moved.mean) > GUARD_ALARM


def guards_in_words(section: Section) -> str:
    """Which guards tripped in which arms; controls, which are broken on purpose, are left to the table."""
    metrics = section.of_kind("guard")
    if not any(arm.cells[metric].value is not None for arm in section.arms for metric in metrics):
        return "No run recorded a guard, so nothing is known about degenerate solutions."
    found = [
        f"{arm.name} ({', '.join(f'{title(one)} {change(arm.cells[one].change, one)}' for one in tripped)})"
        for arm in section.arms
        if arm.control_of is None and (tripped := [metric for metric in metrics if has_tripped(arm, metric)])
    ]
    if not found:
        return f"None tripped: no arm's guards moved by more than {GUARD_ALARM:g} % of {section.baseline}'s."
    return f"Tripped, by more than {GUARD_ALARM:g} % of {section.baseline}'s beyond seed noise: {_some(found)}."


def costs_in_words(section: Section) -> str:
    """Whose time per step and peak memory differ from the baseline's beyond seed noise."""
    sentences = []
    for name in ("step_seconds", "peak_memory_bytes"):
        for metric in section.of_kind("cost"):
            if metric.name != name or metric.change_unit != "%":
                continue
            trained = [arm for arm in section.arms if arm.control_of is None and arm.name != section.baseline]
            known = [arm for arm in trained if arm.cells[metric].change is not None]
            moved = [f"{arm.name} {change(arm.cells[metric].change, metric)}" for arm in known if _sign(arm, metric)]
            if moved:
                sentences.append(f"{title(metric).capitalize()} against {section.baseline}: {_some(moved)}.")
            elif any(_sign(arm, metric) == 0 for arm in known):
                sentences.append(f"{title(metric).capitalize()}: no difference beyond seed noise.")
    return " ".join(sentences)


def _sign(arm: Arm, metric: Metric) -> int | None:
    found = arm.cells[metric].change
    return None if found is None else found.sign


def _some(names: Sequence[str]) -> str:
    """All of a few names, the first of many."""
    if len(names) <= _NAMED + 1:
        return listed(names)
    return ", ".join(names[:_NAMED]) + f" and {len(names) - _NAMED} more"
