"""The comparison's tables as text for other programs: Markdown for people's notes, CSV for spreadsheets and pandas."""

import csv
import io
import re
from collections.abc import Iterator

from legibility.tradeoff._arms import Arm, Comparison, Metric, Section
from legibility.tradeoff._plain_table import PlainTable
from legibility.tradeoff._statistics import Estimate
from legibility.tradeoff._verdicts import judge, verdicts
from legibility.tradeoff._wording import heading
from legibility.tradeoff.page._in_short import compared, costs_in_words, findings, guards_in_words
from legibility.tradeoff.page._render import TAGS, Further, check_further
from legibility.tradeoff.page._tables import Table, costs, footnotes, guards, headline, short_sources

ARM_COLUMNS = (
    "recipe", "arm", "control", "matches", "seeds", "kind", "metric", "family", "unit", "direction", "trained_on",
    "mean", "low", "high", "change", "change_low", "change_high", "change_unit", "verdict", "beyond_control",
    "beyond_control_low", "beyond_control_high", "own_control", "own_control_mean", "missing",
)  # fmt: skip
RUN_COLUMNS = (
    "recipe", "arm", "seed", "control", "matches", "temperature", "strengths", "kind", "metric", "family", "unit",
    "value", "change", "change_unit", "source",
)  # fmt: skip


def render_markdown(comparison: Comparison, *, further: Further | None = None) -> str:
    """The comparison as Markdown: what was compared, what came out in short, the headline table, guards, costs.

    Names from records are escaped: none of them can start a heading, a link or HTML.

    Args:
        comparison: from `compare`.
        further: tables to show below the headline table, by recipe.

    Raises:
        ValueError: `further` names a recipe that isn't in the comparison.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, 0, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> text = render_markdown(compare([run("plain", 2.0, 0.5), run("legibility-0.3", 2.02, 0.4)]))
        >>> next(line for line in text.splitlines() if line.startswith("| legibility"))
        '| legibility-0.3 | +1.0 % (2.020) | -20.0 % (0.4000) | 1 |'
    """
    further = check_further(comparison, further)
    blocks = ["# The trade-off"]
    for section in comparison.sections:
        blocks += [f"## {escaped(heading(section))}", escaped(compared(section))]
        blocks += [f"**Warning:** {escaped(warning)}" for warning in section.warnings]
        for one in findings(section):
            lines = [f"- **{escaped(arms)}**{escaped(said)}" for arms, said in one.lines]
            blocks.append("\n".join([f"**{TAGS.get(one.outcome, one.outcome)}**: {one.meaning}", "", *lines]))
        blocks += [_table(headline(section)), "\n".join(f"- {escaped(note)}" for note in footnotes(section))]
        for table in further.get(section.recipe, ()):
            blocks += [f"### {escaped(table.title)}", escaped(table.caption), _plain(table)]
        sentences = [f"- {escaped(one.text)}" for one in verdicts(comparison) if one.recipe == section.recipe]
        blocks += ["### In sentences", "\n".join(sentences)] if sentences else []
        blocks += ["### Guards", escaped(guards_in_words(section)), _table(guards(section))]
        blocks += ["### Costs", escaped(costs_in_words(section)), _table(costs(section))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_csv(comparison: Comparison) -> str:
    """One row for each recipe, arm and metric, with full precision; `ARM_COLUMNS` says in which order.

    Changes are against the baseline, paired by seed, in `change_unit` ("points": percentage points); `beyond_control` is
    what of it goes beyond the matched control, the least of several. Text from records that a spreadsheet would take
    for a formula gets an apostrophe before it.
    """
    return _csv(ARM_COLUMNS, (row for section in comparison.sections for row in _arm_rows(section)))


def render_runs_csv(comparison: Comparison) -> str:
    """One row for each run and metric, with full precision; `RUN_COLUMNS` says in which order. See `render_csv`."""
    return _csv(RUN_COLUMNS, (row for section in comparison.sections for row in _run_rows(section)))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    shown = re.sub(r"([\\`*_{}\[\]<>|~&])", r"\\\1", " ".join(text.split()))
    # What would become a link by itself, or a list or heading at the start.
    shown = re.sub(
        r"(?i)\b(?:(https?|ftp)(:)(?=//)|(www)(\.))", lambda one: one[1] + "\\:" if one[1] else one[3] + "\\.", shown
    )
    return re.sub(r"^([0-9]*)([#+.)-])(?=\s)", r"\1\\\2", shown)


def _table(table: Table | None) -> str:
    if table is None:
        return ""
    header = [table.first, *(f"{name} ({below})" if below else name for name, below in table.heads)]
    rows = []
    for row in table.rows:
        name = ("↳ " if row.kind == "gain" else "") + row.name + (" (baseline)" if row.kind == "baseline" else "")
        cells = []
        for one in row.cells:
            top = f"{one.mark} {one.top}".strip()
            cells.append(f"{top} ({one.bottom})" if one.bottom else top)
        rows.append([name, *cells, row.seeds])
    return _plain(PlainTable("", "", [*header, "seeds"], rows))


def _plain(table: PlainTable) -> str:
    lines = [list(table.header), ["---"] + ["---:"] * (len(table.header) - 1)]
    shown = [[escaped(cell) for cell in line] for line in (lines[0], *table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (shown[0], lines[1], *shown[1:]))


_Field = str | float | int | bool | None


def _csv(columns: tuple[str, ...], rows: Iterator[dict[str, _Field]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _field(value) for name, value in row.items()})
    return out.getvalue()


def _field(value: _Field) -> _Field:
    if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")):
        return "'" + value
    return value


def _identity(section: Section, arm: Arm) -> dict[str, _Field]:
    control = arm.control_of
    return {
        "recipe": section.recipe,
        "arm": arm.name,
        "control": None if control is None else control.kind,
        "matches": None if control is None else control.matches,
    }


def _arm_rows(section: Section) -> Iterator[dict[str, _Field]]:
    for arm in section.arms:
        for metric, cell in arm.cells.items():
            judged = metric in section.headlines and arm.control_of is None and arm.name != section.baseline
            yield {
                **_identity(section, arm),
                "seeds": 0 if cell.value is None else cell.value.seeds,
                **_metric(metric),
                "direction": metric.direction,
                "trained_on": cell.trained_on if metric.kind == "score" else None,
                **_estimate(cell.value, "mean", "low", "high"),
                **_estimate(cell.change, "change", "change_low", "change_high"),
                "change_unit": metric.change_unit,
                "verdict": judge(section, arm, metric) if judged else None,
                **_estimate(
                    _least(list((cell.gains or {}).values()), metric),
                    "beyond_control", "beyond_control_low", "beyond_control_high",
                ),
                "own_control": cell.control_name,
                "own_control_mean": None if cell.control is None else cell.control.mean,
                "missing": cell.missing,
            }  # fmt: skip


def _run_rows(section: Section) -> Iterator[dict[str, _Field]]:
    for arm, sources in zip(section.arms, short_sources(section), strict=True):
        for source, record in zip(sources, arm.records, strict=True):
            control = record.control_of
            for metric, cell in arm.cells.items():
                if cell.value is None or record.seed not in cell.value.values:
                    continue
                yield {
                    **_identity(section, arm),
                    "seed": record.seed,
                    "temperature": None if control is None else control.temperature,
                    "strengths": ";".join(f"{name}={value!r}" for name, value in record.strengths.items()),
                    **_metric(metric),
                    "value": cell.value.values[record.seed],
                    "change": None if cell.change is None else cell.change.values.get(record.seed),
                    "change_unit": metric.change_unit,
                    "source": source,
                }


def _metric(metric: Metric) -> dict[str, _Field]:
    return {"kind": metric.kind, "metric": metric.name, "family": metric.family, "unit": metric.unit}


def _estimate(found: Estimate | None, mean: str, low: str, high: str) -> dict[str, _Field]:
    if found is None:
        return {mean: None, low: None, high: None}
    return {mean: found.mean, low: found.low, high: found.high}


def _least(gains: list[Estimate], metric: Metric) -> Estimate | None:
    """The gain over the control that does best, for that is the one to be beaten."""
    if not gains:
        return None
    return (min if metric.direction == "higher" else max)(gains, key=lambda gain: gain.mean)
