"""The trade-off pictures as data: task loss across, one score up, one panel per score.

`spots` is what every picture draws, the page's and the exported one. `payload` is the same for the page's script, with
the lines that a point shows on hover. The script hands texts to plotly, which reads them as a small HTML: every name
from outside leaves here escaped.
"""

import html
from dataclasses import dataclass
from typing import Any, Literal

from legibility.tradeoff._arms import Arm, Cell, Metric, Section, front
from legibility.tradeoff._statistics import Estimate
from legibility.tradeoff._wording import change, number, role, seeds, signed_change, title, typeset, value
from legibility.tradeoff.page._grouping import Group, groups, strength
from legibility.tradeoff.statistics import attainment

View = Literal["values", "changes"]
VIEWS: tuple[View, ...] = ("changes", "values")

LONGEST_NAME = 80


@dataclass(frozen=True)
class Spot:
    """Where an arm stands in a panel: its task loss and its score, over the seeds that have both.

    Args:
        arm: the arm.
        x: task loss, mean and interval.
        y: the score.
        seeds: the seeds that both have, as `x.values` and `y.values` hold them.
    """

    arm: Arm
    x: Estimate
    y: Estimate
    seeds: tuple[int, ...]


def panels(section: Section) -> list[Metric]:
    """The headline scores that can be drawn: some arm has a value at a known task loss."""
    return [metric for metric in section.headlines if spots(section, metric, "values")]


def spots(section: Section, metric: Metric, view: View) -> dict[str, Spot]:
    """Where each arm stands, by its name; arms without a value or without a task loss are left out.

    Args:
        section: what is drawn.
        metric: the score.
        view: `"values"`, or `"changes"` against the baseline, paired by seed.
    """
    result = {}
    for arm in section.arms:
        x, y = (_shown(arm.cells[which], view) for which in (section.task_loss, metric))
        if x is not None and y is not None:
            result[arm.name] = Spot(arm, x, y, tuple(seed for seed in x.values if seed in y.values))
    return result


def has_changes(section: Section) -> bool:
    """Whether some arm beside the baseline shares a seed with it, so that the view of changes shows something."""
    return any(
        arm.name != section.baseline and arm.cells[metric].change is not None
        for arm in section.arms
        for metric in panels(section)
    )


def axis_title(metric: Metric, view: View) -> str:
    """What stands at the axis, with the unit."""
    if view == "changes":
        unit = {"%": " (%)", "points": " (% points)", "": ""}.get(metric.change_unit, f" ({metric.change_unit})")
        return f"change in {title(metric)}{unit}"
    unit = "" if metric.unit in ("", "share") else f" ({metric.unit})"
    return title(metric) + unit


def alt(section: Section, metric: Metric) -> str:
    """The panel in words, for those who can't see it."""
    shown = []
    for name, spot in spots(section, metric, "values").items():
        scale = 100.0 if metric.unit == "share" else 1.0
        shown.append(f"{name} {number(spot.x.mean)}, {number(spot.y.mean * scale)}")
    more = ""
    if len(shown) > 12:
        more = f"; and {len(shown) - 12} more arms, all in the table of every run below"
        del shown[12:]
    unit = " in %" if metric.unit == "share" else ""
    return f"Scatter plot of task loss and {title(metric)}{unit}, means over seeds: " + "; ".join(shown) + more + "."


def payload(section: Section, identity: str) -> dict[str, Any]:
    """All that the page's script draws of a section, as JSON values. Texts are HTML."""
    order = {arm.name: place for place, arm in enumerate(section.arms)}
    metrics = [section.task_loss, *panels(section)]
    return {
        "baseline": order[section.baseline],
        "arms": [_arm(section, arm, order) for arm in section.arms],
        "groups": [
            {
                "arms": [order[arm.name] for arm in group.arms],
                "symbol": group.look.symbol,
                "colour": group.look.colour,
                "control": group.control,
            }
            for group in groups(section)
        ],
        "metrics": [
            {
                "title": _markup(title(metric)),
                "direction": metric.direction,
                "percent": metric.unit == "share",
                "axis": {view: _markup(axis_title(metric, view)) for view in VIEWS},
                **{view: [_place(arm.cells[metric], metric, view) for arm in section.arms] for view in VIEWS},
                "own": [_own_control(arm.cells[metric], metric) for arm in section.arms],
                "trained": [arm.cells[metric].trained_on for arm in section.arms],
            }
            for metric in metrics
        ],
        "panels": [
            {
                "id": f"{identity}-{place}",
                "metric": place + 1,
                "front": [order[arm.name] for arm in front(section, metric)],
                "attained": {view: _attained(section, metric, view) for view in VIEWS},
            }
            for place, metric in enumerate(metrics[1:])
        ],
    }


def _shown(cell: Cell, view: View) -> Estimate | None:
    return cell.value if view == "values" else cell.change


def _markup(text: str) -> str:
    """Text from outside for plotly: escaped, and short enough for a label."""
    return html.escape(typeset(text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"))


def _arm(section: Section, arm: Arm, order: dict[str, int]) -> dict[str, Any]:
    what = (role(arm) or ("the baseline" if arm.name == section.baseline else "")).split(", ")
    added = arm.records[0].strengths
    if added:
        what.append("strength: " + ", ".join(f"{name} {coefficient:g}" for name, coefficient in added.items()))
    owner = None if arm.control_of is None or arm.control_of.matches is None else order.get(arm.control_of.matches)
    return {
        "name": _markup(arm.name),
        "lines": [_markup(line) for line in what if line],
        "seeds": list(arm.seeds),
        "label": strength(arm),
        "owner": owner,
        "controls": [order[control.name] for control in section.controls_of(arm.name)],
        "over": f"mean of {seeds(len(arm.records))}",
    }


def _place(cell: Cell, metric: Metric, view: View) -> dict[str, Any] | None:
    """Mean, half-width and single runs, each as number and as text; runs in the order of the arm's seeds."""
    found = _shown(cell, view)
    if found is None:
        return None

    def text(estimate: Estimate) -> str:
        shown = value(Cell(value=estimate), metric) if view == "values" else change(estimate, metric)
        return _markup(shown)

    runs = {seed: (_rounded(one), _markup(_one(one, metric, view))) for seed, one in found.values.items()}
    return {
        "mean": _rounded(found.mean),
        "half": None if found.half_width is None else _rounded(found.half_width),
        "text": text(found),
        "seeds": list(runs),
        "runs": [one for one, _ in runs.values()],
        "texts": [shown for _, shown in runs.values()],
    }


def _attained(section: Section, metric: Metric, view: View) -> list[dict[str, Any] | None]:
    """For each group the corners of what half of the seeds reach with it, each at some strength; None: nothing to draw."""
    found = spots(section, metric, view)
    sign = -1.0 if metric.direction == "higher" else 1.0

    def corners_of(group: Group) -> dict[str, Any] | None:
        strands: dict[int, list[tuple[float, float]]] = {}
        for spot in (found[arm.name] for arm in group.arms if arm.name in found):
            for seed in spot.seeds:
                strands.setdefault(seed, []).append((spot.x.values[seed], sign * spot.y.values[seed]))
        if group.control or len(group.arms) < 2 or len(strands) < 2 or metric.direction is None:
            return None
        corners = [(loss, sign * score) for loss, score in attainment(strands)]
        return {
            "name": _markup(group.name),
            "over": f"half of {seeds(len(strands))} reach",
            "x": [_rounded(loss) for loss, _ in corners],
            "y": [_rounded(score) for _, score in corners],
            "texts": [[_markup(_one(a, section.task_loss, view)), _markup(_one(b, metric, view))] for a, b in corners],
        }

    return [corners_of(group) for group in groups(section)]


def _one(found: float, metric: Metric, view: View) -> str:
    estimate = Estimate(found, None, None, {0: found})
    return value(Cell(value=estimate), metric) if view == "values" else signed_change(estimate, metric)


def _own_control(cell: Cell, metric: Metric) -> str | None:
    if cell.control is None:
        return None
    return _markup(f"{cell.control_name or 'control'}: {value(Cell(value=cell.control), metric)}")


def _rounded(found: float) -> float:
    """Six digits: more than a screen shows, and a third of the file."""
    return float(f"{found:.6g}")
