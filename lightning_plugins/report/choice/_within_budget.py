"""Takes the scores that apply within what is left of a budget, and writes them as entries of the run record."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from legibility.lightning_plugins.report.choice._applicable import Applicable
from legibility.scores import UNLEARNT, Control, Material, Measured, Score, measure
from legibility.tradeoff import DOUBTED_BY, ScoreEntry

Progress = Callable[[str, float], None]

_FIRST_CONTROL = "random-init"


@dataclass(frozen=True)
class Further:
    """What was measured beside the held-out students.

    Attributes:
        entries: Of the run record.
        findings: What a score found, by its name: circuits, profiles over depth.
    """

    entries: list[ScoreEntry] = field(default_factory=list)
    findings: dict[str, object] = field(default_factory=dict)


def take(
    material: Material,
    scores: Sequence[Applicable],
    controls: Sequence[Control],
    budget: float,
    why_none: str,
    tell: Callable[[str], None],
    progress: Progress,
) -> Further:
    """Measures beside the controls, cheapest first, within the budget.

    Args:
        material: The model, asked by number.
        scores: What there is to measure.
        controls: Models beside it.
        budget: Seconds; at most 0 measures nothing.
        why_none: What is said of each score if nothing is measured.
        tell: Called once, before measuring, with the estimate of each score.
        progress: Called with a score's name and the share done.

    Returns:
        An entry for each score, in the order given; one that was not taken has a reason.
    """
    measured: dict[str, Measured] = {}
    applying = [one.score for one in scores if one.reason is None]
    if budget > 0:
        plan = partial(_announce, budget, tell)
        found = measure(material, applying, controls, budget=budget, progress=progress, announce=plan)
        measured = {one.name: one for one in found}
    entries = []
    for one in scores:
        reason = one.reason or (None if one.score.name in measured else why_none)
        entries.append(_entry(one, measured[one.score.name]) if reason is None else missing(one, reason))
    return Further(entries, {name: one.findings for name, one in measured.items() if one.findings is not None})


def _announce(budget: float, tell: Callable[[str], None], plan: Sequence[tuple[Score, float]]) -> None:
    tell(in_words(plan, budget))


def in_words(plan: Sequence[tuple[Score, float]], budget: float) -> str:
    """The estimates of a plan, and where the budget ends.

    Example:
        >>> from legibility.scores import structure_scores
        >>> gini, modular = structure_scores()[:2]
        >>> print(in_words([(gini, 0.2), (modular, 4.0)], 1.0))
        Estimated, in seconds with controls: gini 0.2. Beyond the 1.0 s that are left: relative_modularity 4.0.
    """
    within: list[str] = []
    beyond: list[str] = []
    spent = 0.0
    for score, seconds in plan:
        spent += seconds
        (within if spent <= budget else beyond).append(f"{score.name} {seconds:.1f}")
    said = f"Estimated, in seconds with controls: {', '.join(within) or 'nothing'}."
    if beyond:
        said += f" Beyond the {budget:.1f} s that are left: {', '.join(beyond)}."
    return said


def missing(one: Applicable, reason: str) -> ScoreEntry:
    """A score that was not taken, and why."""
    score = one.score
    return ScoreEntry(
        score.name, None, score.unit, score.direction, None, None, one.trained_on, version=score.version, reason=reason
    )


def _entry(one: Applicable, found: Measured) -> ScoreEntry:
    controls = {name: value for name, value in found.controls.items() if math.isfinite(value)}
    first = _FIRST_CONTROL if _FIRST_CONTROL in controls else next(iter(controls), None)
    known = math.isfinite(found.value)
    # A control that hasn't learnt has no value; what it would have is told where that is better.
    doubts = [(DOUBTED_BY + name, found.control_details[name][UNLEARNT]) for name in found.doubted_by]
    entry = ScoreEntry(
        name=found.name,
        value=found.value if known else None,
        unit=found.unit,
        direction=found.direction,
        control=None if first is None else controls[first],
        control_name=first,
        trained_on=one.trained_on,
        version=found.version,
        reason=None if known else found.reason or "not finite",
        controls=controls,
        control_reasons=dict(found.control_reasons),
        details={name: value for name, value in (*found.details.items(), *doubts) if math.isfinite(value)},
    )
    return entry if found.interval is None else replace(entry, interval=list(found.interval))
