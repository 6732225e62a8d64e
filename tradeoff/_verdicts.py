"""The comparison in short plain sentences, with no more in them than the intervals hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from legibility.tradeoff._adjusted_gains import matched_controls
from legibility.tradeoff._arms import Arm, Comparison, Metric, Section, is_matched
from legibility.tradeoff._statistics import Estimate
from legibility.tradeoff._wording import (
    change_in_words,
    interval,
    listed,
    seeds,
    signed_change,
    title,
    with_half_width,
)
from legibility.tradeoff.statistics._significance import ALPHA

Outcome = Literal[
    "gain",
    "unsure",
    "no gain over control",
    "unmatched",
    "trained on",
    "worse",
    "no difference",
    "changed",
    "one seed",
    "missing",
]


_NO_INTERVAL = "1 seed: no interval"


@dataclass(frozen=True)
class Verdict:
    """One sentence about one arm.

    Args:
        recipe: the section it belongs to.
        arm: whom it is about.
        outcome: `"gain"`: better than the baseline, and than its matched control or at a better task loss, with p below
            .05 after Holm's adjustment over all arms and headline scores; `"unsure"`: the same by intervals that stand
            each for itself, but not after the adjustment; `"no gain over control"`: better than the baseline, but its
            control does as well; `"unmatched"`: better, at a task loss that no control matches and that isn't lower
            beyond seed noise; `"trained on"`: better at what it was trained on; `"worse"`;
            `"no difference"`: the interval holds zero; `"changed"`: a score without direction; `"one seed"`: no
            interval; `"missing"`.
        scores: names of the scores it is about.
        text: the sentence.
    """

    recipe: str | None
    arm: str
    outcome: Outcome
    scores: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return self.text


def verdicts(comparison: Comparison) -> list[Verdict]:
    """What the comparison says about each arm's headline scores. Controls get no sentence of their own.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> print(verdicts(compare([run("plain", 2.0, 0.5), run("legibility-0.3", 2.02, 0.4)]))[0])
        legibility-0.3 lowers held-out KL by 20.0 % (1 seed: no interval) at +1.0 % task loss.
    """
    found: list[Verdict] = []
    for section in comparison.sections:
        for arm in section.arms:
            if arm.name != section.baseline and arm.control_of is None:
                found += _about(section, arm)
    return found


def _about(section: Section, arm: Arm) -> list[Verdict]:
    """Sentences in order of the headlines; scores of which the same is to be said share one."""
    groups: dict[tuple[object, ...], list[Metric]] = {}
    for metric in section.headlines:
        outcome, found = judge(section, arm, metric), arm.cells[metric].change
        alone = found is None or bool(section.controls_of(arm.name)) and outcome != "no difference"
        apart = metric.name if alone or _counts_zeros(arm, metric) else None
        key = (outcome, apart, found and (found.seeds, found.mean < 0 or outcome == "no difference"))
        groups.setdefault(key, []).append(metric)
    result = []
    for metrics in groups.values():
        outcome = judge(section, arm, metrics[0])
        if _counts_zeros(arm, metrics[0]):
            text = _zeros(section, arm, metrics[0])
        elif outcome == "missing":
            text = f"{arm.name} has no {title(metrics[0])} to compare: {arm.cells[metrics[0]].missing}."
        elif outcome == "no difference":
            text = (
                f"{arm.name} shows no difference beyond seed noise in {_spreads(arm, metrics)}{_at_loss(section, arm)}."
            )
        else:
            text = _difference(section, arm, metrics, outcome)
        result.append(Verdict(section.recipe, arm.name, outcome, tuple(metric.name for metric in metrics), text))
    return result


def _counts_zeros(arm: Arm, metric: Metric) -> bool:
    return metric.name == "exact_zero_share" and arm.cells[metric].value is not None


def judge(section: Section, arm: Arm, metric: Metric) -> Outcome:
    """What the intervals allow to say about `arm` in `metric` (see `Verdict.outcome`)."""
    cell, loss = arm.cells[metric], arm.cells[section.task_loss]
    if cell.change is None:
        return "missing"
    sign = cell.change.sign
    if sign is None:
        return "one seed"
    if sign == 0:
        return "no difference"
    if metric.direction is None:
        return "changed"
    better = -1 if metric.direction == "lower" else 1
    if sign != better:
        return "worse"
    if cell.trained_on:
        return "trained on"
    if controls := matched_controls(section, arm, metric):
        if any((cell.gains or {})[control.name].sign != better for control in controls):
            return "no gain over control"
    elif loss.change is None or loss.change.high is None or loss.change.high > 0:
        return "unmatched"
    return "gain" if cell.adjusted is not None and cell.adjusted < ALPHA else "unsure"


def _difference(section: Section, arm: Arm, metrics: Sequence[Metric], outcome: Outcome) -> str:
    parts = []
    for metric in metrics:
        found, relative = arm.cells[metric].change, arm.cells[metric].relative
        assert found is not None
        note = "; ".join(part for part in (_certainty(found, metric), _relative(relative)) if part)
        if len(metrics) > 1:
            # The confidence and the number of seeds are said once, at the end.
            note = note.replace("95 % interval ", "").replace(f", {seeds(found.seeds)}", "").replace(_NO_INTERVAL, "")
        note = f" ({note.removeprefix('; ')})" if note else ""
        parts.append(f"{title(metric)} by {change_in_words(found, metric)}{note}")
    first = arm.cells[metrics[0]].change
    assert first is not None
    text = f"{arm.name} {_verb(first)} {listed(parts)}"
    if len(metrics) > 1:
        text += f" ({_NO_INTERVAL})" if first.low is None else f" (95 % intervals, {seeds(first.seeds)})"
    text += _at_loss(section, arm)
    for control in section.controls_of(arm.name):
        text += _control_clause(section, arm, control, metrics[0])
    if outcome == "trained on":
        text += ". It was trained on this, so that is no evidence"
    elif outcome == "unsure":
        text += ". Among so many comparisons that may be chance"
    elif outcome == "unmatched":
        text += ". No control matches its task loss" if section.controls_of(arm.name) else ", which no control matches"
    return text + "."


def _spreads(arm: Arm, metrics: Sequence[Metric]) -> str:
    parts = []
    for metric in metrics:
        found = arm.cells[metric].change
        assert found is not None
        unit = {"%": " %", "points": " pp"}.get(metric.change_unit, "")
        parts.append(f"{title(metric)} ({interval(found, metric)}{unit}, {seeds(found.seeds)})")
    return listed(parts)


def _zeros(section: Section, arm: Arm, metric: Metric) -> str:
    found = arm.cells[metric].value
    assert found is not None
    if not any(found.values.values()):
        return f"{arm.name} has no exact zero{_at_loss(section, arm)}{_and_accuracy(section, arm)}."
    mean, _, width = with_half_width(found, metric.unit).removesuffix(" %").partition(" ±")
    if found.low is None or found.high is None:
        certainty = _NO_INTERVAL
    else:
        places = len(width.partition(".")[2])
        certainty = f"95 % interval {100 * found.low:.{places}f} to {100 * found.high:.{places}f}"
        certainty += f", {seeds(found.seeds)}"
    text = f"{arm.name} has {mean} % exact zeros ({certainty}){_at_loss(section, arm)}{_and_accuracy(section, arm)}"
    return text + "."


def _verb(found: Estimate) -> str:
    return "lowers" if found.mean < 0 else "raises"


def _certainty(found: Estimate, metric: Metric) -> str:
    if found.low is None:
        return _NO_INTERVAL
    return f"95 % interval {interval(found, metric)}, {seeds(found.seeds)}"


def _relative(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{abs(found.mean):.{2 if abs(found.mean) < 1 else 1}f} % of the baseline's"


def _at_loss(section: Section, arm: Arm) -> str:
    metric = section.task_loss
    found = arm.cells[metric].change
    if found is None:
        return " (task loss unknown)"
    shown = signed_change(found, metric)
    return f" at {shown} task loss" + (" (within seed noise)" if found.sign == 0 else "")


def _and_accuracy(section: Section, arm: Arm) -> str:
    for metric in section.of_kind("task"):
        found = arm.cells[metric].change
        if metric.name == "accuracy" and found is not None:
            noise = ", within seed noise" if found.sign == 0 else ""
            return f", accuracy {signed_change(found, metric)}{noise}"
    return ""


def _control_clause(section: Section, arm: Arm, control: Arm, metric: Metric) -> str:
    mine, theirs = arm.cells[metric].change, control.cells[metric].change
    who = "temperature alone" if control.control_of and control.control_of.kind == "temperature" else control.name
    if mine is None or theirs is None:
        return f"; {who} has no {title(metric)} ({control.cells[metric].missing})"
    matched = is_matched(section, arm, control)
    loss = control.cells[section.task_loss].change
    where = "unknown" if loss is None else signed_change(loss, section.task_loss)
    where = "equal task loss" if matched else f"{where} task loss"
    same_way = (mine.mean < 0) == (theirs.mean < 0)
    text = f"; {who}, at {where}, "
    if theirs.mean == 0:
        # What a control can't change by construction: temperature moves no decision.
        text += "not at all"
    else:
        text += ("" if same_way else f"{_verb(theirs)} it ") + f"by {change_in_words(theirs, metric)}"
    gain = (arm.cells[metric].gains or {}).get(control.name)
    if gain is None or not matched or metric.direction is None or gain.sign is None:
        return text
    if gain.sign == 0:
        return text + ": no difference between the two beyond seed noise"
    better = (gain.mean < 0) == (metric.direction == "lower")
    size = change_in_words(gain, metric).replace(" %", " points")
    spread = interval(gain, metric, flip=gain.mean < 0).replace("+", "")
    return text + f": {size} {'better' if better else 'worse'} than that (95 % interval {spread})"
