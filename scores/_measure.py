"""Taking scores: each with its controls, cheapest first, within a time budget, and with a reason where there is none."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from legibility.scores._asking import answers
from legibility.scores._material import Control, Material, Need

Direction = Literal["lower", "higher"]
Progress = Callable[[str, float], None]
UNLEARNT = "of a model that hasn't learnt"
"""Among the details: the value that a score would have if it gave one to models that haven't learnt."""

_ROUNDING = 1e-6
_NEEDED = {
    "model": "the model itself",
    "labels": "true labels",
    "shifted": "shifted data with labels",
    "layer": "a layer of the model (`Material.ask(..., layer=...)`)",
    "concepts": "labels of concepts (`Material.ask(..., concepts=...)`)",
    "classes": "a distribution over classes, which a regression hasn't",
}


@dataclass(frozen=True)
class Reading:
    """What a score says of one material.

    Attributes:
        value: the number that counts; NaN if there is none.
        reason: why there is none.
        interval: 95 % interval, where the score has one.
        details: other numbers that belong to it, by name.
        findings: all that was found, where a reader may want more than numbers: a circuit, a profile over depth.
    """

    value: float
    reason: str | None = None
    interval: tuple[float, float] | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    findings: object | None = None


@dataclass(frozen=True, eq=False)
class Score:
    """A score as the measuring machinery knows it.

    Attributes:
        name: as it is printed.
        unit: as it is printed.
        direction: which is the more interpretable end; None if neither.
        take: the measurement. Errors of type ValueError and ImportError count as "does not apply", with their message.
        needs: what the material must have.
        passes: cost, roughly, in passes of the model over all queries.
        seconds: cost that doesn't depend on the model, roughly, per 1000 positions that count.
        version: of its protocol.
        weights_only: the model's answers don't matter: a control that changes only these has the same value.
        times: how often `passes` and `seconds` are to be paid, from the material, such as the number of concepts.
    """

    name: str
    unit: str
    direction: Direction | None
    take: Callable[[Material], Reading]
    needs: frozenset[Need] = frozenset()
    passes: float = 0.0
    seconds: float = 0.0
    version: str = "1"
    weights_only: bool = False
    times: Callable[[Material], float] | None = None

    def missing(self, material: Material) -> str | None:
        """Why the score doesn't apply; None if it does."""
        absent = [_NEEDED[need] for need in sorted(self.needs) if not material.has(need)]
        return f"needs {' and '.join(absent)}" if absent else None


@dataclass(frozen=True)
class Measured:
    """A score of one model beside its controls.

    Attributes:
        name: of the score.
        unit: of the value.
        direction: which is the more interpretable end.
        value: NaN if there is none.
        reason: why there is none.
        interval: 95 % interval, where the score has one.
        details: other numbers that belong to it.
        controls: the same score of each control by name; NaN where it has none.
        control_reasons: why a control has none.
        control_details: other numbers that belong to a control's value, by control and name.
        estimate: seconds that it was expected to take, controls included.
        seconds: that it took.
        version: of the protocol.
        findings: of the model's own reading.
    """

    name: str
    unit: str
    direction: Direction | None
    value: float = math.nan
    reason: str | None = None
    interval: tuple[float, float] | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    controls: Mapping[str, float] = field(default_factory=dict)
    control_reasons: Mapping[str, str] = field(default_factory=dict)
    control_details: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    estimate: float = 0.0
    seconds: float = 0.0
    version: str = "1"
    findings: object | None = None

    @property
    def beaten_by(self) -> tuple[str, ...]:
        """Controls that do better, by more than rounding: with one of them, the value says nothing for the model."""
        return self._better(self.controls)

    @property
    def doubted_by(self) -> tuple[str, ...]:
        """Controls that haven't learnt, so have no value, but would do better with one: not all of it comes of training."""
        return self._better({name: each.get(UNLEARNT, math.nan) for name, each in self.control_details.items()})

    def _better(self, others: Mapping[str, float]) -> tuple[str, ...]:
        if self.direction is None or math.isnan(self.value):
            return ()
        sign = 1.0 if self.direction == "higher" else -1.0
        least = sign * self.value + _ROUNDING * abs(self.value)
        return tuple(name for name, other in others.items() if sign * other > least)


def measure(
    material: Material,
    scores: Sequence[Score],
    controls: Sequence[Control] = (),
    *,
    budget: float = math.inf,
    progress: Progress | None = None,
    announce: Callable[[Sequence[tuple[Score, float]]], None] | None = None,
) -> list[Measured]:
    """Take scores of a model and of its controls.

    The cheapest by estimate comes first. A score whose estimate doesn't fit into what is left of the budget is skipped,
    with the two numbers as reason; one that has begun isn't interrupted. A score that doesn't apply, or a control that a
    score doesn't apply to, has no value and a reason.

    Args:
        material: the model and its answers.
        scores: what is measured, see `headline_scores`.
        controls: models beside it, see `default_controls`.
        budget: seconds.
        progress: called with the score's name and the share done, by estimate.
        announce: called once, before anything is measured, with the scores that apply and their estimates in seconds,
            cheapest first.

    Returns:
        in the order of `scores`.

    Example:
        >>> import torch
        >>> from legibility.scores import Material, Reading, Score, Temperature, measure
        >>> largest = Score("largest logit", "nats", None, lambda m: Reading(m.queries.logits.max().item()))
        >>> model = torch.nn.Linear(4, 3)
        >>> (found,) = measure(Material.ask(model, torch.randn(64, 4)), [largest], [Temperature(2.0)])
        >>> round(found.value / found.controls["temperature 2"], 4)
        2.0
    """
    pass_seconds = _timed(material)
    plan = {id(score): estimate(score, material, pass_seconds) * (1 + len(controls)) for score in scores}
    ready: dict[str, Material | str] = {}
    whole = sum(plan.values()) or 1.0
    found: dict[int, Measured] = {}
    begun, done = time.perf_counter(), 0.0
    if announce is not None:
        applying = [(score, plan[id(score)]) for score in scores if score.missing(material) is None]
        announce(sorted(applying, key=lambda pair: pair[1]))
    for score in sorted(scores, key=lambda each: plan[id(each)]):
        expected = plan[id(score)]
        empty = Measured(score.name, score.unit, score.direction, estimate=expected, version=score.version)
        left = budget - (time.perf_counter() - begun)
        reason = score.missing(material)
        if reason is None and expected > left:
            reason = f"would take about {expected:.1f} s, {max(0.0, left):.1f} s of the budget are left"
        if progress is not None:
            progress(score.name, min(1.0, done / whole))
        done += expected
        if reason is not None:
            found[id(score)] = replace(empty, reason=reason)
            continue
        started = time.perf_counter()
        for control in controls:
            if control.name not in ready:
                ready[control.name] = _tried(control, material)
        own = taken(score, material)
        beside = {control.name: _beside(score, material, own, ready[control.name]) for control in controls}
        found[id(score)] = replace(
            empty,
            value=own.value,
            reason=own.reason,
            interval=own.interval,
            details=own.details,
            findings=own.findings,
            controls={name: reading.value for name, reading in beside.items()},
            control_reasons={name: r.reason for name, r in beside.items() if r.reason is not None},
            control_details={name: r.details for name, r in beside.items() if r.details},
            seconds=time.perf_counter() - started,
        )
    if progress is not None:
        progress("", 1.0)
    return [found[id(score)] for score in scores]


def estimate(score: Score, material: Material, pass_seconds: float) -> float:
    """Seconds that one measurement is expected to take, without controls."""
    once = score.passes * pass_seconds + score.seconds * int(material.queries.counted.sum()) / 1000
    if score.times is None or score.missing(material) is not None:
        return once
    return once * score.times(material)


def taken(score: Score, material: Material) -> Reading:
    """One measurement. What doesn't apply, and a value that isn't finite, is NaN with a reason."""
    missing = score.missing(material)
    if missing is not None:
        return Reading(math.nan, missing)
    try:
        reading = score.take(material)
    except (ValueError, ImportError) as error:
        return Reading(math.nan, f"does not apply: {error}")
    if math.isfinite(reading.value):
        return reading
    return replace(reading, value=math.nan, reason=reading.reason or "not finite")


def _tried(control: Control, material: Material) -> Material | str:
    try:
        return control.apply(material)
    except ValueError as error:
        return f"the control's answers can't be measured: {error}"


def _beside(score: Score, material: Material, own: Reading, control: Material | str) -> Reading:
    if isinstance(control, str):
        return Reading(math.nan, control)
    if score.weights_only and control.model is material.model:
        return own
    return taken(score, control)


def _timed(material: Material) -> float:
    """Seconds of one pass over all queries, from at most 256 of them."""
    if material.model is None:
        return 0.0
    rows = material.queries.inputs[:256]
    started = time.perf_counter()
    answers(material.model, rows, material.forward)
    return (time.perf_counter() - started) * len(material.queries) / len(rows)
