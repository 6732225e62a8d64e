"""Runs as points on the plane of task loss and one score: one curve per method, one strand per seed.

Arms that differ only in a number at the end of their name are one method at several strengths: `legibility-0.1` and
`legibility-0.3`, `width-32` and `width-64`; so are multiples of an arm's strengths, `proximal` and `proximal-x0.5`. Two
things join a method without being named after it:

- a baseline trained with the same settings (`RunRecord.settings`) is strength 0 of a method whose strengths are in its
  records: with strength 0 our callbacks leave a run as it is, bit for bit;
- an arm is temperature 1 of its temperature controls, which together are the method `temperature`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from legibility.tradeoff._arms import Arm, Metric, Section

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_NUMBERED = re.compile(rf"(?P<method>.*?[^\s=@:_-])[\s=@:_-](?P<number>{_NUMBER})", re.DOTALL)
_MULTIPLE = re.compile(rf"(?P<arm>.+)-x(?P<times>{_NUMBER})", re.DOTALL)


@dataclass(frozen=True)
class Point:
    """One run: an arm under one seed.

    Args:
        loss: task loss.
        score: value of the score.
        arm: the arm's name.
        strength: that in the record if it has one only, the temperature of a temperature control, 0 for a baseline that
            joins as strength 0; else what the arm's name ends in, None if that is no number.
    """

    loss: float
    score: float
    arm: str = ""
    strength: float | None = None


@dataclass(frozen=True)
class Curve:
    """One method's runs in one score.

    Args:
        method: its name.
        strands: the points of each seed, by task loss; no seed without a point.
        arms: the arms it consists of, without one that joined as strength 0.
        anchor: the arm that joined as strength 0 or temperature 1; None if none did.
        ours: whether its runs record strengths of terms, so that it is a method under test, not one to hold it against.
        trained_on: whether some run of it was trained on the score.
    """

    method: str
    strands: Mapping[int, tuple[Point, ...]]
    arms: tuple[str, ...] = ()
    anchor: str | None = None
    ours: bool = False
    trained_on: bool = False

    @property
    def fewest(self) -> int:
        """Number of points of the seed that has fewest."""
        return min((len(strand) for strand in self.strands.values()), default=0)


def method_of(arm: str) -> tuple[str, float | None]:
    """Splits an arm's name into method and strength; the strength is None without a number at the end.

    Example:
        >>> method_of("legibility-0.3"), method_of("l1-1e-3"), method_of("early-stop")
        (('legibility', 0.3), ('l1', 0.001), ('early-stop', None))
        >>> method_of("proximal-x0.5"), method_of("legibility-0.3-x2")
        (('proximal', 0.5), ('legibility', 0.6))
    """
    multiple = _MULTIPLE.fullmatch(arm)
    name, times = (arm, None) if multiple is None else (multiple["arm"], float(multiple["times"]))
    found = _NUMBERED.fullmatch(name)
    if found is None:
        return name, times
    return found["method"], float(found["number"]) * (1.0 if times is None else times)


def curves(section: Section, metric: Metric) -> list[Curve]:
    """The section's methods in `metric`, in order of their first arm; without untrained controls.

    The baseline is in it as part of a method only. A method of one arm has that arm's whole name. Runs without a task loss or without a value are left out.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> section = compare([run("plain", 2.0, 0.5), run("width-32", 2.2, 0.4), run("width-64", 2.1, 0.45)]).sections[0]
        >>> curve, = curves(section, section.headlines[0])
        >>> curve.method, [(point.loss, point.strength) for point in curve.strands[0]]
        ('width', [(2.1, 64.0), (2.2, 32.0)])
    """
    groups: dict[tuple[object, ...], list[Arm]] = {}
    for arm in section.arms:
        role = arm.control_of
        if role is not None and role.kind == "temperature":
            groups.setdefault(("temperature", role.arm), []).append(arm)
        elif role is None:
            names = {name for record in arm.records for name in record.strengths}
            groups.setdefault((method_of(arm.name)[0], *sorted(names)), []).append(arm)
    alone = [section.arm(section.baseline)]
    named = [_curve(section, metric, arms) for arms in groups.values() if arms != alone]
    return [curve for curve in named if curve.strands]


def _curve(section: Section, metric: Metric, arms: Sequence[Arm]) -> Curve:
    anchor = _anchor(section, arms)
    role = arms[0].control_of
    if role is not None:
        name = "temperature" if role.arm == section.baseline else f"temperature of {role.arm}"
    else:
        name = method_of(arms[0].name)[0] if len(arms) > 1 else arms[0].name
    found: dict[int, list[Point]] = {}
    for arm in arms:
        strengths = _strengths(arm)
        for seed, loss, score in _runs(section, metric, arm):
            found.setdefault(seed, []).append(Point(loss, score, arm.name, strengths[seed]))
    if anchor is not None:
        for seed, loss, score in _runs(section, metric, anchor):
            if seed in found:
                found[seed].append(Point(loss, score, anchor.name, 1.0 if role is not None else 0.0))
    return Curve(
        name,
        {seed: tuple(sorted(found[seed], key=lambda point: (point.loss, point.score))) for seed in sorted(found)},
        tuple(arm.name for arm in arms),
        None if anchor is None else anchor.name,
        ours=any(record.strengths for arm in arms for record in arm.records) and role is None,
        trained_on=any(arm.cells[metric].trained_on for arm in arms),
    )


def _runs(section: Section, metric: Metric, arm: Arm) -> list[tuple[int, float, float]]:
    losses, scores = arm.cells[section.task_loss].value, arm.cells[metric].value
    if losses is None or scores is None:
        return []
    return [(seed, losses.values[seed], score) for seed, score in scores.values.items() if seed in losses.values]


def _strengths(arm: Arm) -> dict[int, float | None]:
    named = method_of(arm.name)[1]
    result: dict[int, float | None] = {}
    for record in arm.records:
        if record.control_of is not None:
            result[record.seed] = record.control_of.temperature
        else:
            result[record.seed] = next(iter(record.strengths.values())) if len(record.strengths) == 1 else named
    return result


def _anchor(section: Section, arms: Sequence[Arm]) -> Arm | None:
    """The arm that is strength 0 (temperature 1) of all `arms`."""
    role = arms[0].control_of
    if role is not None:
        return next((arm for arm in section.arms if arm.name == role.arm), None)
    baseline = section.arm(section.baseline)
    if baseline in arms:
        return None
    settings = {record.seed: record.settings for record in baseline.records}
    same = all(
        record.strengths and record.settings == settings.get(record.seed, record.settings)
        for arm in arms
        for record in arm.records
    )
    free = not any(value for record in baseline.records for value in record.strengths.values())
    return baseline if same and free else None
