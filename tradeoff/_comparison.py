"""From run records to a comparison: arms against a baseline, paired by seed, controls kept apart.

Pure functions. A `Comparison` has one `Section` per recipe, a section has arms, an arm has one `Cell` per `Metric`:
the mean over seeds, the change against the baseline, and what of that change goes beyond the matching control.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from legibility.tradeoff._adjusted_gains import with_adjusted
from legibility.tradeoff._arms import Arm, Cell, Comparison, Direction, Kind, Metric, Section, is_matched, natural
from legibility.tradeoff._record import ControlOf, RunRecord
from legibility.tradeoff._statistics import estimate

# Shown first where present and not equal in all runs; otherwise the first six scores that have a direction.
HEADLINES = ("held_out_kl", "code_length", "disagreement", "patch_through_kl", "exact_zero_share")


def compare(
    records: Iterable[RunRecord | tuple[str | os.PathLike[str], RunRecord]],
    *,
    baseline: str = "plain",
    headlines: Sequence[str] | None = None,
) -> Comparison:
    """Compares arms with a baseline, paired by seed, separately for each recipe.

    Change of arm a in metric m, per seed s: 100 (m_as / m_bs - 1) in %, for shares 100 (m_as - m_bs) in percentage
    points; then mean and 95 % t interval over the seeds that both arms have. Gain over a control c matched to a:
    change_as - change_cs, paired and averaged alike. Task losses aren't matched by interpolation: a change in a score
    stands beside the change in task loss, and the control run at that task loss is the comparison that counts.

    Args:
        records: as `find_records` returns them, with the source of each for messages; or bare records.
        baseline: arm that changes are taken against; every recipe must have it.
        headlines: names of the scores to show first; chosen by `HEADLINES` if None.

    Raises:
        ValueError: no record; no baseline (lists the arms); two different runs of one arm and seed (names both);
            a score that changes its unit, direction or version; a headline that no run has.

    Example:
        >>> from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, compare
        >>> def run(arm, seed, loss, kl):
        ...     score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        ...     return RunRecord(arm, seed, "demo", {}, [], TaskEntry("cross-entropy", loss, None, None, None, "test"),
        ...                      [score], CostEntry(None, None, None, None, None, {}, 1), {})
        >>> result = compare([run("plain", 0, 2.0, 0.5), run("legibility-0.3", 0, 2.02, 0.4)])
        >>> section = result.sections[0]
        >>> round(section.arm("legibility-0.3").cells[section.headlines[0]].change.mean, 6)
        -20.0
    """
    by_recipe: dict[str | None, list[tuple[str, RunRecord]]] = {}
    for index, item in enumerate(records):
        source, record = (f"record {index}", item) if isinstance(item, RunRecord) else (os.fspath(item[0]), item[1])
        by_recipe.setdefault(record.recipe, []).append((source, record))
    if not by_recipe:
        raise ValueError("`records` must hold at least one run record, got none; were the folders right?")
    order = sorted(by_recipe, key=lambda recipe: (recipe is None, natural(recipe or "")))
    sections = tuple(_compare_recipe(recipe, by_recipe[recipe], baseline, headlines) for recipe in order)
    wanted = set(headlines or ()) - {metric.name for section in sections for metric in section.headlines}
    if wanted:
        there = sorted({metric.name for section in sections for metric in section.of_kind("score")})
        raise ValueError(f"`headlines`: no run has the score {min(wanted)!r}; scores: {', '.join(there)}")
    return Comparison(sections)


@dataclass(frozen=True)
class _Measured:
    value: float | None
    unit: str = ""
    direction: Direction = None
    version: str = "1"
    trained_on: bool = False
    control: float | None = None
    control_name: str | None = None
    reason: str | None = None


_Key = tuple[Kind, str, str | None]


def _measured(record: RunRecord) -> dict[_Key, _Measured]:
    """Everything a run measured, in one form."""
    task, cost = record.task, record.cost
    result: dict[_Key, _Measured] = {
        ("task", "loss", None): _Measured(task.loss, "", "lower"),
        ("task", "accuracy", None): _Measured(task.accuracy, "share", "higher"),
        ("task", "entropy", None): _Measured(task.entropy, "nats"),
    }
    for entry in record.scores:
        result["score", entry.name, entry.family] = _Measured(
            entry.value,
            entry.unit,
            entry.direction,
            entry.version,
            entry.trained_on,
            entry.control,
            entry.control_name,
            entry.reason,
        )
    for name, value in record.guards.items():
        result["guard", name, None] = _Measured(value)
    result["cost", "step_seconds", None] = _Measured(cost.step_seconds, "seconds")
    for name, value in cost.terms.items():
        result["cost", f"{name} per step", None] = _Measured(value, "seconds")
    result["cost", "fit_seconds", None] = _Measured(cost.fit_seconds, "seconds")
    result["cost", "report_seconds", None] = _Measured(cost.report_seconds, "seconds")
    result["cost", "peak_memory_bytes", None] = _Measured(cost.peak_memory_bytes, "bytes")
    result["cost", "parameters", None] = _Measured(cost.parameters)
    return result


def _compare_recipe(
    recipe: str | None, pairs: Sequence[tuple[str, RunRecord]], baseline: str, headlines: Sequence[str] | None
) -> Section:
    runs = _by_arm(pairs)
    name = f"recipe {recipe!r}" if recipe is not None else "the runs without a recipe"
    if baseline not in runs:
        arms = ", ".join(sorted(runs, key=natural))
        raise ValueError(f"`baseline` {baseline!r} has no run in {name}; its arms: {arms}; name one of them")
    if next(iter(runs[baseline].values()))[1].control_of is not None:
        raise ValueError(f"`baseline` {baseline!r} is a control arm in {name}; name an arm that was trained")
    table = {arm: {seed: _measured(record) for seed, (_, record) in by_seed.items()} for arm, by_seed in runs.items()}
    metrics = _metrics(runs, table, baseline)
    cells = {arm: {metric: _cell(metric, table[arm], table[baseline]) for metric in metrics} for arm in runs}
    controls = {arm: _control_of(arm, by_seed) for arm, by_seed in runs.items()}
    for control, role in controls.items():
        if role is not None and role.matches in cells:
            for metric in metrics:
                cells[role.matches][metric] = _with_gain(cells[role.matches][metric], control, cells[control][metric])
    arms_in_order = tuple(
        Arm(
            arm,
            tuple(source for source, _ in runs[arm].values()),
            tuple(record for _, record in runs[arm].values()),
            controls[arm],
            cells[arm],
        )
        for arm in _order(controls, baseline)
    )
    chosen = _headlines(metrics, cells, headlines)
    section = with_adjusted(Section(recipe, baseline, arms_in_order, metrics, chosen, ()))
    return replace(section, warnings=tuple(_warnings(section)))


_Runs = dict[str, dict[int, tuple[str, RunRecord]]]


def _by_arm(pairs: Sequence[tuple[str, RunRecord]]) -> _Runs:
    runs: _Runs = {}
    for source, record in pairs:
        by_seed = runs.setdefault(record.arm, {})
        other = by_seed.get(record.seed)
        if other is None:
            by_seed[record.seed] = (source, record)
        elif other[1] != record:
            strengths = [", ".join(f"{k} {v:g}" for k, v in one.strengths.items()) for one in (other[1], record)]
            differ = f" (strengths: {strengths[0]}; {strengths[1]})" if strengths[0] != strengths[1] else ""
            raise ValueError(
                f"`records`: two different runs of arm {record.arm!r} with seed {record.seed}: {other[0]} and {source}"
                f"{differ}; {_apart(other[0], source)}, or give them different arms, such as {record.arm}-0.1 and"
                f" {record.arm}-0.3"
            )
    return {arm: dict(sorted(by_seed.items())) for arm, by_seed in runs.items()}


def _apart(one: str, other: str) -> str:
    """How to name only one of two sources: by the folders in which they part, such as two presets of a recipe."""
    parts = Path(one).parts, Path(other).parts
    same = next((place for place, (a, b) in enumerate(zip(*parts, strict=False)) if a != b), None)
    if same is None or same + 1 >= min(map(len, parts)) or "://" in one + other:
        return "leave one out"
    return f"compare {Path(*parts[0][: same + 1])} or {Path(*parts[1][: same + 1])}"


def _control_of(arm: str, by_seed: Mapping[int, tuple[str, RunRecord]]) -> ControlOf | None:
    """What the arm is a control of; its temperature is fitted per seed, the rest must agree."""
    first_source, first = next(iter(by_seed.values()))
    for source, record in by_seed.values():
        one, two = first.control_of, record.control_of
        if (one and (one.kind, one.arm, one.matches)) != (two and (two.kind, two.arm, two.matches)):
            raise ValueError(f"`records`: arm {arm!r} is a control of different things in {first_source} and {source}")
    return first.control_of


def _order(controls: Mapping[str, ControlOf | None], baseline: str) -> list[str]:
    trained = sorted((arm for arm, role in controls.items() if role is None), key=natural)
    result: list[str] = []
    for arm in [baseline, *(arm for arm in trained if arm != baseline)]:
        matched = (name for name, role in controls.items() if role is not None and role.matches == arm)
        result += [arm, *sorted(matched, key=natural)]
    return result + sorted((arm for arm in controls if arm not in result), key=natural)


def _metrics(
    runs: _Runs, table: Mapping[str, Mapping[int, Mapping[_Key, _Measured]]], baseline: str
) -> tuple[Metric, ...]:
    """All metrics in order of appearance; a definition that changes between files is an error."""
    first: dict[_Key, tuple[str, _Measured]] = {}
    for arm in [baseline, *runs]:
        for seed, measured in table[arm].items():
            for key, entry in measured.items():
                source = runs[arm][seed][0]
                where, known = first.setdefault(key, (source, entry))
                for part in ("unit", "direction", "version"):
                    one, two = getattr(known, part), getattr(entry, part)
                    if one != two:
                        raise ValueError(
                            f"`records`: score {key[1]!r} has {part} {one!r} in {where} and {two!r} in {source}:"
                            " not comparable; measure it again"
                        )
    result = []
    for key, (_, entry) in first.items():
        bases = [measured[key].value for measured in table[baseline].values() if key in measured]
        positive = all(base is None or base > 0 for base in bases)
        change = "points" if entry.unit in ("share", "%") else "%" if positive else entry.unit
        result.append(Metric(key[0], key[1], entry.unit, entry.direction, change, key[2], entry.version))
    return tuple(result)


def _cell(
    metric: Metric, runs: Mapping[int, Mapping[_Key, _Measured]], base: Mapping[int, Mapping[_Key, _Measured]]
) -> Cell:
    key: _Key = (metric.kind, metric.name, metric.family)
    entries = {seed: measured[key] for seed, measured in runs.items() if key in measured}
    values = {seed: entry.value for seed, entry in entries.items() if entry.value is not None}
    bases = {seed: measured[key].value for seed, measured in base.items() if key in measured}
    pairs = {seed: (value, other) for seed, value in values.items() if (other := bases.get(seed)) is not None}
    scale = 100.0 if metric.unit == "share" else 1.0
    if metric.change_unit == "%":
        change = {seed: 100.0 * (value / other - 1.0) for seed, (value, other) in pairs.items()}
    else:
        change = {seed: scale * (value - other) for seed, (value, other) in pairs.items()}
    relative: dict[int, float] = {}
    if metric.unit == "share" and all(other > 0 for _, other in pairs.values()):
        relative = {seed: 100.0 * (value / other - 1.0) for seed, (value, other) in pairs.items()}
    controls = {seed: entry.control for seed, entry in entries.items() if entry.control is not None}
    return Cell(
        value=estimate(values) if values else None,
        change=estimate(change) if change else None,
        relative=estimate(relative) if relative else None,
        trained_on=any(entry.trained_on for entry in entries.values()),
        control=estimate(controls) if controls else None,
        control_name=next((entry.control_name for entry in entries.values() if entry.control_name), None),
        missing=_missing(runs, entries, bool(values), bool(change)),
    )


def _missing(
    runs: Mapping[int, object], entries: Mapping[int, _Measured], has_values: bool, has_change: bool
) -> str | None:
    reasons: dict[str, list[int]] = {}
    for seed in runs:
        if seed not in entries:
            reasons.setdefault("not measured", []).append(seed)
        elif entries[seed].value is None:
            reasons.setdefault(entries[seed].reason or "no value, no reason given", []).append(seed)
    parts = [
        reason if len(seeds) == len(runs) else f"{reason} (seed {', '.join(map(str, seeds))})"
        for reason, seeds in reasons.items()
    ]
    if has_values and not has_change:
        parts.append("the baseline has no value for these seeds")
    return "; ".join(parts) or None


def _with_gain(cell: Cell, control: str, other: Cell) -> Cell:
    if cell.change is None or other.change is None:
        return cell
    theirs = other.change.values
    difference = {seed: value - theirs[seed] for seed, value in cell.change.values.items() if seed in theirs}
    if not difference:
        return cell
    gains = {**(cell.gains or {}), control: estimate(difference)}
    return replace(cell, gains=gains)


def _headlines(
    metrics: Sequence[Metric], cells: Mapping[str, Mapping[Metric, Cell]], wanted: Sequence[str] | None
) -> tuple[Metric, ...]:
    def varies(metric: Metric) -> bool:
        values = [value for by_metric in cells.values() if (value := by_metric[metric].value) is not None]
        return len({number for value in values for number in value.values.values()}) > 1

    scores = {metric.name: metric for metric in metrics if metric.kind == "score" and metric.family is None}
    if wanted is not None:
        return tuple(scores[name] for name in dict.fromkeys(wanted) if name in scores)
    known = [scores[name] for name in HEADLINES if name in scores and varies(scores[name])]
    return tuple(known or [metric for metric in scores.values() if metric.direction is not None][:6])


def _warnings(section: Section) -> Iterable[str]:
    records = [record for arm in section.arms for record in arm.records]
    differing = {
        "task losses": {record.task.name for record in records},
        "evaluation data": {record.task.source for record in records},
        "numbers of evaluation examples": {str(record.task.examples) for record in records},
    }
    for what, kinds in differing.items():
        if len(kinds) > 1:
            listed = ", ".join(sorted(kinds, key=natural))
            yield f"The runs have different {what} ({listed}): differences between arms may come from that."
    seeds = section.arm(section.baseline).seeds
    for arm in section.arms:
        if unpaired := sorted(set(arm.seeds) ^ set(seeds)):
            listed = ", ".join(map(str, unpaired))
            yield f"{arm.name} and {section.baseline} don't share seed {listed}: changes use the seeds that both have."
        if any(dict(record.strengths) != dict(arm.records[0].strengths) for record in arm.records):
            yield f"{arm.name} mixes runs of different strengths."
        if arm.control_of is not None and arm.control_of.matches is not None:
            matched = next((other for other in section.arms if other.name == arm.control_of.matches), None)
            if matched is None:
                yield f"{arm.name} is a control for {arm.control_of.matches}, which has no run here."
            elif is_matched(section, matched, arm) is False:
                yield f"{arm.name} doesn't reach the task loss of {matched.name}, so it doesn't say what softening buys."
