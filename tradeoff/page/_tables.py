"""The page's tables: arms down, metrics across, each cell a number with what the reader needs to judge it."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from legibility.tradeoff._arms import Arm, Metric, Section
from legibility.tradeoff._plain_table import PlainTable
from legibility.tradeoff._statistics import Estimate
from legibility.tradeoff._verdicts import Outcome, judge
from legibility.tradeoff._wording import (
    change,
    interval,
    role,
    seeds,
    signed_change,
    title,
    unit_and_direction,
    value,
    with_half_width,
)
from legibility.tradeoff.page._grouping import Look, looks
from legibility.tradeoff.page._in_short import has_tripped

MARKS: dict[Outcome, str] = {
    "gain": "✓",
    "unsure": "?",
    "worse": "✗",
    "unmatched": "‡",
    "no gain over control": "=",
    "no difference": "≈",
}


@dataclass(frozen=True)
class CellView:
    """A cell: its main number, what stands below it, what the comparison says of it."""

    top: str
    bottom: str = ""
    small: str = ""
    outcome: str = ""
    mark: str = ""
    hover: str = ""


@dataclass(frozen=True)
class Row:
    """A row: an arm, a control, or what an arm gains beyond its control."""

    name: str
    seeds: str
    cells: tuple[CellView, ...]
    look: Look | None = None
    kind: Literal["arm", "baseline", "control", "gain"] = "arm"
    role: str | None = None


@dataclass(frozen=True)
class Table:
    """A table; `heads` are column names with a line below each."""

    caption: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    first: str = "arm"


def headline(section: Section) -> Table:
    """Task loss, accuracy and headline scores: change against the baseline, mean, and gain beyond each control."""
    metrics = [section.task_loss]
    metrics += [metric for metric in section.of_kind("task") if metric.name == "accuracy" and _has(section, metric)]
    metrics += section.headlines
    drawn, rows = looks(section), []
    for arm in section.arms:
        cells = tuple(_cell(section, arm, metric) for metric in metrics)
        rows.append(Row(arm.name, str(len(arm.records)), cells, drawn[arm.name], _kind(section, arm), role(arm)))
        for owner in section.arms:
            if arm.control_of is not None and arm.control_of.matches == owner.name:
                gains = tuple(_gain(owner, arm, metric) for metric in metrics)
                rows.append(Row("beyond this control", "", gains, None, "gain"))
    caption = f"Change against {section.baseline}, paired by seed; below it the mean over seeds."
    return Table(caption, _heads(metrics), tuple(rows))


def footnotes(section: Section) -> list[str]:
    """What the headline table's signs mean: those that occur in it."""
    pairs = [(arm, metric) for arm in section.arms for metric in section.headlines]
    outcomes = {
        judge(section, arm, metric) for arm, metric in pairs if arm.control_of is None and arm.name != section.baseline
    }
    spread = (
        "±: half the 95 % t interval over seeds (pp: percentage points); with one seed there is none. Intervals are per"
        " comparison; only what is called a gain or a difference at equal task loss is corrected for the number of tests"
        " (Holm)."
    )
    notes = [spread]
    if any(arm.control_of is not None for arm in section.arms):
        notes.append(
            "Controls are no method: what they reach, softening or chance reaches. What counts of an arm is what it"
            " reaches beyond its control."
        )
    meanings: dict[Outcome, str] = {
        "gain": "better, and better than its control or at a better task loss: p below .05 after Holm's adjustment over"
        " all arms and scores of this table",
        "unsure": "the same by each interval for itself, but not after the adjustment",
        "unmatched": "better, but at a task loss that no control stands at and that isn't lower beyond seed noise: by"
        " itself no gain",
        "no gain over control": "better than the baseline, but not than the control at the same task loss",
        "worse": "worse beyond seed noise",
        "no difference": "no difference beyond seed noise: the interval holds zero",
    }
    notes += [f"{MARKS[outcome]} {meaning}." for outcome, meaning in meanings.items() if outcome in outcomes]
    if any(arm.cells[metric].trained_on for arm, metric in pairs):
        notes.append("† the run was trained on this score: no evidence of legibility.")
    return notes


def families(section: Section) -> list[Table]:
    """For each headline score that is a mean over held-out families: the families one by one."""
    tables, drawn = [], looks(section)
    for metric in section.headlines:
        members = [other for other in section.metrics if other.name == metric.name and other.family is not None]
        if members:
            heads = (("mean over families", ""), *((other.family or "", "") for other in members))
            rows = tuple(
                Row(
                    arm.name,
                    str(len(arm.records)),
                    tuple(_plain(section, arm, one) for one in (metric, *members)),
                    drawn[arm.name],
                )
                for arm in section.arms
            )
            tables.append(Table(f"{title(metric)}: {unit_and_direction(metric)}", heads, rows))
    return tables


def every_score(section: Section) -> Table | None:
    """All scores, one a row, with the control that each brings along; None if there is none."""
    metrics = [metric for metric in section.of_kind("score") if _has(section, metric)]
    metrics += [metric for metric in section.of_kind("task") if metric.name == "entropy" and _has(section, metric)]
    rows = []
    for metric in metrics:
        cells = []
        for arm in section.arms:
            cell, view = arm.cells[metric], _plain(section, arm, metric)
            small = view.small
            if cell.control is not None:
                small = f"{cell.control_name or 'control'}: {with_half_width(cell.control, metric.unit)}"
            trained = " †" if cell.trained_on else ""
            cells.append(CellView(view.top + trained, view.bottom, small))
        rows.append(Row(title(metric), "", tuple(cells), role=unit_and_direction(metric) or None))
    heads = tuple((arm.name, "control" if arm.control_of is not None else "") for arm in section.arms)
    caption = "Mean over seeds, change against the baseline, and the score's own control."
    return Table(caption, heads, tuple(rows), "score") if rows else None


def guards(section: Section) -> Table | None:
    """Quantities that betray a degenerate solution; None if none was recorded."""
    return _by_arm(section, [metric for metric in section.of_kind("guard") if _has(section, metric)])


def costs(section: Section) -> Table | None:
    """Time and memory, without what is zero in every run; None if none was recorded."""
    return _by_arm(section, [metric for metric in section.of_kind("cost") if _has(section, metric, beside_zero=True)])


def every_run(section: Section) -> PlainTable:
    """One row for each run: what the pictures show, for those who can't see them, and where it comes from."""
    metrics = [section.task_loss, *section.headlines]
    temperatures = any(_temperature(arm, 0) for arm in section.arms)
    header = ["arm", "seed", "strength", *(["temperature"] if temperatures else [])]
    header += [f"{title(metric)} ({unit})" if (unit := _unit(metric)) else title(metric) for metric in metrics]
    rows = []
    for arm, sources in zip(section.arms, short_sources(section), strict=True):
        for place, (record, source) in enumerate(zip(arm.records, sources, strict=True)):
            row = [arm.name, str(record.seed), in_words(record.strengths.items())]
            row += [_temperature(arm, place)] if temperatures else []
            for metric in metrics:
                found = arm.cells[metric].value
                one = None if found is None else found.values.get(record.seed)
                row.append("–" if one is None else _number(one, metric))
            rows.append([*row, source])
    caption = "Every run: what the pictures show, in numbers. Changes are taken between runs of the same seed."
    return PlainTable("Every run", caption, [*header, "record"], rows)


def in_words(pairs: Iterable[tuple[str, float]]) -> str:
    """Names with their coefficients, such as `"legibility 0.3, l1 24"`."""
    return ", ".join(f"{name} {coefficient:g}" for name, coefficient in pairs)


def _has(section: Section, metric: Metric, *, beside_zero: bool = False) -> bool:
    found = (arm.cells[metric].value for arm in section.arms)
    return any(one is not None and (not beside_zero or any(one.values.values())) for one in found)


def _heads(metrics: Sequence[Metric]) -> tuple[tuple[str, str], ...]:
    return tuple((title(metric), unit_and_direction(metric)) for metric in metrics)


def _kind(section: Section, arm: Arm) -> Literal["arm", "baseline", "control"]:
    return "baseline" if arm.name == section.baseline else "control" if arm.control_of is not None else "arm"


def _cell(section: Section, arm: Arm, metric: Metric) -> CellView:
    cell = arm.cells[metric]
    dagger = " †" if cell.trained_on else ""
    if cell.value is None:
        return CellView("–" + dagger, small=cell.missing or "")
    few = f" ({seeds(cell.value.seeds)})" if cell.value.seeds < len(arm.records) else ""
    shown = value(cell, metric) + few
    if arm.name == section.baseline or cell.change is None:
        return CellView(shown + dagger, small="" if arm.name == section.baseline else cell.missing or "")
    hover = _interval(cell.change, metric)
    outcome: Outcome | Literal[""] = ""
    if metric.kind == "score" and arm.control_of is None:
        outcome = judge(section, arm, metric)
        loss = arm.cells[section.task_loss].change
        if loss is not None and loss.sign != 0:
            hover += f", at {signed_change(loss, section.task_loss)} task loss"
    mark = MARKS.get(outcome, "") if outcome else ""
    return CellView(change(cell.change, metric) + dagger, shown, "", outcome, mark, hover)


def _gain(arm: Arm, control: Arm, metric: Metric) -> CellView:
    gain = (arm.cells[metric].gains or {}).get(control.name)
    if gain is None:
        return CellView("–")
    # The difference of two changes in % is in points, whatever they are changes of.
    return CellView(change(gain, metric).replace(" %", " pp"), hover=_interval(gain, metric))


def _interval(found: Estimate, metric: Metric) -> str:
    shown = f"95 % interval {interval(found, metric)}, " if found.low is not None else ""
    return shown + seeds(found.seeds)


def _plain(section: Section, arm: Arm, metric: Metric) -> CellView:
    cell = arm.cells[metric]
    if cell.value is None:
        return CellView("–", small=cell.missing or "")
    moved = cell.change is not None and any(cell.change.values.values())
    below = change(cell.change, metric) if moved and arm.name != section.baseline else ""
    # What is equal in all seeds, such as a number of parameters, isn't measured with an error.
    return CellView(re.sub(r" ±0(?![.0-9])", "", value(cell, metric)), below)


def _by_arm(section: Section, metrics: Sequence[Metric]) -> Table | None:
    if not metrics:
        return None
    rows, drawn = [], looks(section)
    for arm in section.arms:
        cells = []
        for metric in metrics:
            view = _plain(section, arm, metric)
            tripped = has_tripped(arm, metric)
            mark = "!" if tripped else ""
            cells.append(CellView(view.top, view.bottom, "", "moved" if tripped else "", mark))
        rows.append(Row(arm.name, str(len(arm.records)), tuple(cells), drawn[arm.name], _kind(section, arm)))
    caption = f"Mean over seeds; below it the change against {section.baseline}, paired by seed."
    return Table(caption, _heads(metrics), tuple(rows))


def _unit(metric: Metric) -> str:
    return unit_and_direction(metric).partition(", ")[0] if metric.unit else ""


def _number(found: float, metric: Metric) -> str:
    shown = with_half_width(Estimate(found, None, None, {0: found}), metric.unit)
    return shown.removesuffix(" %") if metric.unit == "share" else shown


def _temperature(arm: Arm, place: int) -> str:
    control = arm.records[place].control_of
    return "" if control is None or control.temperature is None else f"{control.temperature:.4g}"


def short_sources(section: Section) -> list[list[str]]:
    """Sources without the folders that all of them share: a page that is passed on needn't show those."""
    every = [source for arm in section.arms for source in arm.sources]
    folder = os.path.dirname(os.path.commonprefix([os.path.join(os.path.dirname(source), "") for source in every]))
    return [[os.path.relpath(source, folder) if folder else source for source in arm.sources] for arm in section.arms]
