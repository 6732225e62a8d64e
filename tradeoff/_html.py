"""The comparison as one HTML file that needs no network."""

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from legibility.tradeoff._arms import Arm, Comparison, Metric, Section
from legibility.tradeoff._picture import Look, Panel, looks, panels
from legibility.tradeoff._record import RunRecord
from legibility.tradeoff._verdicts import Outcome, Verdict, judge, verdicts
from legibility.tradeoff._wording import (
    change,
    heading,
    interval,
    role,
    seeds,
    signed_change,
    title,
    unit_and_direction,
    value,
    with_half_width,
)

# A guard that moved by more than this share of the baseline's, beyond seed noise, is pointed out.
GUARD_ALARM = 20.0


@dataclass(frozen=True)
class _CellView:
    top: str
    bottom: str = ""
    small: str = ""
    outcome: str = ""
    mark: str = ""
    hover: str = ""


@dataclass(frozen=True)
class _Row:
    name: str
    seeds: str
    cells: tuple[_CellView, ...]
    look: Look | None = None
    kind: str = "arm"
    role: str | None = None


@dataclass(frozen=True)
class _Table:
    caption: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[_Row, ...]
    first: str = "arm"


def write_html(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Writes `render_html(comparison)` to `path`, all or nothing, and returns the path.

    Raises:
        ImportError: jinja2 or plotly is missing.
    """
    target = Path(path)
    data = render_html(comparison).encode("utf-8", "replace")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.tmp"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def render_html(comparison: Comparison) -> str:
    """The comparison as one self-contained page: verdicts, table, pictures, details, costs, how to repeat it.

    The page loads nothing from anywhere; its content security policy forbids that and lets only its own two scripts
    run. Every name from a run record is escaped.

    Raises:
        ImportError: jinja2 or plotly is missing; the message says how to install them.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> "<title>" in render_html(compare([run("plain", 2.0, 0.5), run("<b>", 2.02, 0.4)]))
        True
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            f'the HTML report needs jinja2 and plotly ({error.name} is missing): pip install "legibility[html]"'
        ) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"minus": _minus, "csp_hash": _csp_hash}
    template = environment.from_string(files("legibility.tradeoff").joinpath("report.html.j2").read_text("utf-8"))
    sentences = verdicts(comparison)
    sections = [_section(section, sentences, index) for index, section in enumerate(comparison.sections)]
    figures = {panel["id"]: panel["figures"] for section in sections for panel in section["panels"]}
    names = ", ".join(section["title"] for section in sections)
    return template.render(
        title=f"Trade-off: {names}",
        sections=sections,
        # Trusted as they stand: JSON without `<`, and plotly's own code.
        figures=Markup(_script_safe_json(figures)),
        plotly=Markup(get_plotlyjs().replace("\r", "")),
        alarm=f"{GUARD_ALARM:g}",
        tags=_TAGS,
    )


def _script_safe_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, so nothing in it can close the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _csp_hash(script: str) -> str:
    """The script's name in a content security policy: only scripts named there may run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _minus(text: str) -> str:
    """A number with a typographic minus sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def _section(section: Section, sentences: list[Verdict], index: int) -> dict[str, Any]:
    drawn = looks(section)
    records = [record for arm in section.arms for record in arm.records]
    mine = [sentence for sentence in sentences if sentence.recipe == section.recipe]
    names = list(dict.fromkeys(sentence.arm for sentence in mine))
    return {
        "id": f"section-{index}",
        "title": heading(section),
        "baseline": section.baseline,
        "facts": _facts(section, records),
        "warnings": section.warnings,
        "verdicts": [(name, drawn[name], [sentence for sentence in mine if sentence.arm == name]) for name in names],
        "headline": _headline(section, drawn),
        "footnotes": _footnotes(section),
        "legend": [
            (place, arm.name, drawn[arm.name], role(arm), not _stands_far_off(arm))
            for place, arm in enumerate(section.arms)
        ],
        "panels": [_panel(panel, f"panel-{index}-{place}") for place, panel in enumerate(panels(section))],
        "families": _families(section, drawn),
        "scores": _all_scores(section),
        "guards": _plain_table(section, drawn, "guard", "Guards, mean over seeds and change"),
        "costs": _plain_table(section, drawn, "cost", "Cost per run, mean over seeds and change"),
        "notes": _notes(section),
        "versions": _versions(records),
        "arms": [(arm.name, drawn[arm.name], _setting(arm)) for arm in section.arms],
        "recipe": section.recipe,
        "sources": [source for arm in section.arms for source in _short(arm.sources, section)],
    }


def _stands_far_off(arm: Arm) -> bool:
    """Untrained models have a task loss so high that all else would shrink to a point: hidden until asked for."""
    return arm.control_of is not None and arm.control_of.kind == "random-init"


def _panel(panel: Panel, identity: str) -> dict[str, Any]:
    return {
        "id": identity,
        "title": title(panel.metric),
        "unit": unit_and_direction(panel.metric),
        "alt": panel.alt,
        "figures": panel.figures,
    }


def _facts(section: Section, records: list[RunRecord]) -> list[tuple[str, str]]:
    controls = sum(arm.control_of is not None for arm in section.arms)
    arms = f"{len(section.arms) - controls}" + (f" and {controls} controls" if controls else "")
    tasks = sorted({record.task.name for record in records})
    data = sorted(
        {
            record.task.source + (f", {record.task.examples:,} examples" if record.task.examples else "")
            for record in records
        }
    )
    days = sorted({record.created[:10] for record in records})
    return [
        ("arms", arms),
        ("runs", str(len(records))),
        ("seeds", str(len({record.seed for record in records}))),
        ("baseline", section.baseline),
        ("task loss", ", ".join(tasks)),
        ("evaluated on", "; ".join(data)),
        ("made", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"),
    ]


def _heads(metrics: list[Metric]) -> tuple[tuple[str, str], ...]:
    return tuple((title(metric), unit_and_direction(metric)) for metric in metrics)


def _headline(section: Section, drawn: Mapping[str, Look]) -> _Table:
    metrics = [section.task_loss]
    metrics += [metric for metric in section.of_kind("task") if metric.name == "accuracy" and _has(section, metric)]
    metrics += section.headlines
    rows = []
    for arm in section.arms:
        cells = tuple(_cell(section, arm, metric) for metric in metrics)
        kind = "baseline" if arm.name == section.baseline else "control" if arm.control_of is not None else "arm"
        rows.append(_Row(arm.name, str(len(arm.records)), cells, drawn[arm.name], kind, role(arm)))
        for owner in section.arms:
            if arm.control_of is not None and arm.control_of.matches == owner.name:
                gains = tuple(_gain(owner, arm, metric) for metric in metrics)
                rows.append(_Row("beyond this control", "", gains, None, "gain"))
    return _Table("Change against " + section.baseline, _heads(metrics), tuple(rows))


def _has(section: Section, metric: Metric) -> bool:
    return any(arm.cells[metric].value is not None for arm in section.arms)


_MARKS: dict[Outcome, str] = {
    "gain": "✓",
    "worse": "✗",
    "unmatched": "‡",
    "no gain over control": "=",
    "no difference": "≈",
}
_TAGS: dict[Outcome, str] = {"no gain over control": "as control", "one seed": "1 seed"}


def _cell(section: Section, arm: Arm, metric: Metric) -> _CellView:
    cell = arm.cells[metric]
    mark = " †" if cell.trained_on else ""
    if cell.value is None:
        return _CellView("–" + mark, small=cell.missing or "")
    few = f" ({seeds(cell.value.seeds)})" if cell.value.seeds < len(arm.records) else ""
    shown = value(cell, metric) + few
    if arm.name == section.baseline or cell.change is None:
        return _CellView(shown + mark, small="" if arm.name == section.baseline else cell.missing or "")
    hover = f"95 % interval {interval(cell.change, metric)}, " if cell.change.low is not None else ""
    hover += seeds(cell.change.seeds)
    small, outcome, sign = "", "", ""
    if metric.kind == "score":
        loss = arm.cells[section.task_loss].change
        if loss is not None and loss.sign != 0:
            small = f"at {signed_change(loss, section.task_loss)} loss"
        if arm.control_of is None:
            outcome = judge(section, arm, metric)
            sign = _MARKS.get(outcome, "")
    return _CellView(change(cell.change, metric) + mark, shown, small, outcome, sign, hover)


def _gain(arm: Arm, control: Arm, metric: Metric) -> _CellView:
    gain = (arm.cells[metric].gains or {}).get(control.name)
    if gain is None:
        return _CellView("–")
    hover = "" if gain.low is None else f"95 % interval {interval(gain, metric)}, {seeds(gain.seeds)}"
    return _CellView(change(gain, metric).replace(" %", " pp"), hover=hover)


def _footnotes(section: Section) -> list[str]:
    pairs = [(arm, metric) for arm in section.arms for metric in section.headlines]
    outcomes = {
        judge(section, arm, metric) for arm, metric in pairs if arm.control_of is None and arm.name != section.baseline
    }
    what = "change against " + section.baseline
    notes = [
        f"Large: {what}, paired by seed, ± half the 95 % t interval over seeds (pp: percentage points).",
        "Small: mean over seeds. With one seed there is no interval.",
        "Intervals are per comparison, not corrected for the number of scores and arms.",
    ]
    if any(arm.control_of is not None for arm in section.arms):
        notes.append(
            "Controls (✕) are no method: what they reach, softening or chance reaches. An arm's gain is what it reaches"
            " beyond its control."
        )
    meanings: dict[Outcome, str] = {
        "gain": "better beyond seed noise, and better than its control or at no worse task loss",
        "unmatched": "better, but at a worse task loss that no control stands at: by itself no gain",
        "no gain over control": "better than the baseline, but not than the control at the same task loss",
        "worse": "worse beyond seed noise",
        "no difference": "no difference beyond seed noise: the interval holds zero",
    }
    notes += [f"{_MARKS[outcome]} {meaning}." for outcome, meaning in meanings.items() if outcome in outcomes]
    if any(arm.cells[metric].trained_on for arm, metric in pairs):
        notes.append("† the run was trained on this score: no evidence of legibility.")
    return notes


def _families(section: Section, drawn: Mapping[str, Look]) -> list[_Table]:
    tables = []
    for metric in section.headlines:
        members = [other for other in section.metrics if other.name == metric.name and other.family is not None]
        if not members:
            continue
        columns = [metric, *members]
        rows = tuple(
            _Row(arm.name, str(len(arm.records)), tuple(_plain(section, arm, one) for one in columns), drawn[arm.name])
            for arm in section.arms
        )
        heads = (("mean over families", ""), *((other.family or "", "") for other in members))
        tables.append(_Table(f"{title(metric)}: {unit_and_direction(metric)}", heads, rows))
    return tables


def _plain(section: Section, arm: Arm, metric: Metric) -> _CellView:
    cell = arm.cells[metric]
    if cell.value is None:
        return _CellView("–", small=cell.missing or "")
    top = value(cell, metric)
    moved = cell.change is not None and any(cell.change.values.values())
    below = change(cell.change, metric) if moved and arm.name != section.baseline else ""
    return _CellView(top, below)


def _all_scores(section: Section) -> _Table | None:
    metrics = [metric for metric in section.of_kind("score") if _has(section, metric)]
    metrics += [m for m in section.of_kind("task") if m.name == "entropy" and _has(section, m)]
    rows = []
    for metric in metrics:
        cells = []
        for arm in section.arms:
            cell, view = arm.cells[metric], _plain(section, arm, metric)
            small = view.small
            if cell.control is not None:
                small = f"{cell.control_name or 'control'}: {with_half_width(cell.control, metric.unit)}"
            trained = " †" if cell.trained_on else ""
            cells.append(_CellView(view.top + trained, view.bottom, small))
        rows.append(_Row(title(metric), "", tuple(cells), role=unit_and_direction(metric) or None))
    heads = tuple((arm.name, "control" if arm.control_of is not None else "") for arm in section.arms)
    return _Table("Every score, its change, and its own control", heads, tuple(rows), "score") if rows else None


def _plain_table(section: Section, drawn: Mapping[str, Look], kind: Any, caption: str) -> _Table | None:
    metrics = [metric for metric in section.of_kind(kind) if _has(section, metric)]
    if not metrics:
        return None
    rows = []
    for arm in section.arms:
        cells = []
        for metric in metrics:
            view, moved = _plain(section, arm, metric), arm.cells[metric].change
            alarm = (
                kind == "guard"
                and moved is not None
                and moved.sign != 0
                and metric.change_unit == "%"
                and abs(moved.mean) > GUARD_ALARM
            )
            cells.append(_CellView(view.top, view.bottom, outcome="moved" if alarm else "", mark="!" if alarm else ""))
        rows.append(_Row(arm.name, str(len(arm.records)), tuple(cells), drawn[arm.name]))
    return _Table(caption, _heads(metrics), tuple(rows))


def _notes(section: Section) -> list[str]:
    notes: dict[tuple[str, str], list[int]] = {}
    for arm in section.arms:
        for record in arm.records:
            for note in record.notes:
                notes.setdefault((arm.name, note), []).append(record.seed)
    return [f"{name}, seed {', '.join(map(str, found))}: {note}" for (name, note), found in notes.items()]


def _versions(records: list[RunRecord]) -> list[tuple[str, str]]:
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for library, version in record.versions.items():
            found.setdefault(library, {})[version] = None
    return [(library, ", ".join(versions)) for library, versions in sorted(found.items())]


def _setting(arm: Arm) -> dict[str, str]:
    first = arm.records[0]
    shown = {"seeds": ", ".join(map(str, arm.seeds))}
    if first.strengths:
        shown["strengths"] = ", ".join(f"{name} {strength:g}" for name, strength in first.strengths.items())
    if first.students:
        shown["students"] = ", ".join(first.students)
    if first.settings:
        shown["settings"] = json.dumps(first.settings, ensure_ascii=False, sort_keys=True)
    return shown


def _short(sources: tuple[str, ...], section: Section) -> list[str]:
    """Sources without the folders that all of them share: a page that is passed on needn't show those."""
    every = [source for arm in section.arms for source in arm.sources]
    folder = os.path.dirname(os.path.commonprefix([os.path.join(os.path.dirname(source), "") for source in every]))
    short: Callable[[str], str] = (
        (lambda source: os.path.relpath(source, folder)) if folder else (lambda source: source)
    )
    return [short(source) for source in sources]
