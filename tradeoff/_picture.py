"""The trade-off picture as plain plotly figures: task loss across, one score up, one panel per score.

Colours are CSS variables ("var(--c0)") that the page resolves for light, dark and print.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from legibility.tradeoff._arms import Arm, Cell, Metric, Section, front
from legibility.tradeoff._statistics import Estimate
from legibility.tradeoff._wording import change, number, role, signed_change, title, value

View = Literal["values", "changes"]

COLOURS = 8
_SHAPES = ("circle", "diamond", "triangle-up", "pentagon", "triangle-down", "star", "hexagon")
_BASELINE_SHAPE = "square"
_CONTROL_SHAPES = ("x", "cross")


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: plotly's name of its symbol, its colour as a CSS variable."""

    symbol: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One score's picture, as plotly's data and layout, with the same in words for those who can't see it."""

    metric: Metric
    alt: str
    figures: Mapping[View, Mapping[str, Any]]


def looks(section: Section) -> dict[str, Look]:
    """The look of each arm: shapes and colours both differ, a control has its arm's colour and a cross."""
    result: dict[str, Look] = {}
    trained = [arm for arm in section.arms if arm.control_of is None and arm.name != section.baseline]
    for index, arm in enumerate(trained):
        result[arm.name] = Look(_SHAPES[index % len(_SHAPES)], f"var(--c{index % COLOURS})")
    result[section.baseline] = Look(_BASELINE_SHAPE, "var(--ink)")
    seen: dict[str | None, int] = {}
    for arm in section.arms:
        if arm.control_of is not None:
            owner = arm.control_of.matches
            count = seen[owner] = seen.get(owner, -1) + 1
            colour = result[owner].colour if owner in result else "var(--soft)"
            result[arm.name] = Look(_CONTROL_SHAPES[count % len(_CONTROL_SHAPES)], colour)
    return result


def panels(section: Section) -> list[Panel]:
    """One panel per headline score that has a value at a known task loss."""
    result = []
    for metric in section.headlines:
        figures: dict[View, Mapping[str, Any]] = {}
        for view in ("values", "changes"):
            traces = _traces(section, metric, view)
            if traces:
                figures[view] = {"data": traces, "layout": _layout(section, metric, view)}
        if "values" in figures:
            result.append(Panel(metric, _alt(section, metric), figures))
    return result


def _traces(section: Section, metric: Metric, view: View) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    drawn = looks(section)
    places: dict[str, tuple[float, float]] = {}
    for index, arm in enumerate(section.arms):
        x, y = (_shown(arm.cells[which], view) for which in (section.task_loss, metric))
        if x is None or y is None:
            continue
        places[arm.name] = (x.mean, y.mean)
        look = drawn[arm.name]
        shared = [seed for seed in x.values if seed in y.values]
        points.append(
            _markers([x.values[seed] for seed in shared], [y.values[seed] for seed in shared], look, index)
            | {"text": [_hover(section, metric, arm, view, seed) for seed in shared]}
        )
        points[-1]["marker"] |= {"size": 7, "opacity": 0.5}
        mean = _markers([x.mean], [y.mean], look, index) | {"text": [_hover(section, metric, arm, view, None)]}
        mean["marker"] |= {"size": 13, "line": {"width": 1.5, "color": "var(--card)"}}
        for axis, found in (("error_x", x), ("error_y", y)):
            if found.half_width is not None:
                mean[axis] = {
                    "type": "data",
                    "array": [found.half_width],
                    "color": look.colour,
                    "thickness": 1.2,
                    "width": 3,
                }
        means.append(mean)
    order = [arm.name for arm in section.arms]
    best = [arm.name for arm in front(section, metric) if arm.name in places]
    if len(best) > 1:
        line = _line([places[name] for name in best], "var(--soft)", "solid", [])
        line["meta"]["points"] = [order.index(name) for name in best]
        lines.append(line)
    for index, arm in enumerate(section.arms):
        owner = arm.control_of.matches if arm.control_of is not None else None
        if owner in places and arm.name in places:
            ends = [places[owner], places[arm.name]]
            lines.append(_line(ends, drawn[arm.name].colour, "dot", [index, order.index(owner)]))
    return lines + points + means if means else []


def _shown(cell: Cell, view: View) -> Estimate | None:
    return cell.value if view == "values" else cell.change


def _markers(x: Sequence[float], y: Sequence[float], look: Look, index: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "marker": {"symbol": look.symbol, "color": look.colour},
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
        "meta": {"arms": [index]},
    }


def _line(points: Sequence[tuple[float, float]], colour: str, dash: str, arms: Sequence[int]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "line": {"color": colour, "width": 1.5, "dash": dash},
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": {"arms": list(arms)},
    }


def _hover(section: Section, metric: Metric, arm: Arm, view: View, seed: int | None) -> str:
    """Hover text; plotly reads it as a small HTML, so everything from outside is escaped."""
    name = html.escape(arm.name)
    lines = [f"<b>{name}</b> · " + (f"mean of {len(arm.records)}" if seed is None else f"seed {seed}")]
    if (what := role(arm)) is not None:
        lines.append(html.escape(what))
    for which in (section.task_loss, metric):
        cell = arm.cells[which]
        found = _shown(cell, view)
        assert found is not None
        if seed is None:
            shown = value(cell, which) if view == "values" else change(found, which)
        else:
            one = Estimate(found.values[seed], None, None, {seed: found.values[seed]})
            shown = value(Cell(value=one), which) if view == "values" else signed_change(one, which)
        lines.append(f"{html.escape(title(which))}: {html.escape(shown)}")
    if seed is None and arm.cells[metric].trained_on:
        lines.append("† trained on this score")
    return "<br>".join(lines)


def _layout(section: Section, metric: Metric, view: View) -> dict[str, Any]:
    higher = metric.direction == "higher"
    corner = {
        "xref": "paper",
        "yref": "paper",
        "x": 0.01,
        "y": 0.99 if higher else 0.01,
        "xanchor": "left",
        "yanchor": "top" if higher else "bottom",
        "text": "↖ better" if higher else "↙ better",
        "showarrow": False,
        "font": {"size": 11, "color": "var(--soft)"},
    }
    return {
        "xaxis": _axis(section.task_loss, view),
        "yaxis": _axis(metric, view),
        "annotations": [corner] if metric.direction is not None else [],
        "hoverlabel": {"align": "left", "bgcolor": "var(--card)", "bordercolor": "var(--soft)"},
        "margin": {"l": 64, "r": 14, "t": 10, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "var(--ink)"},
        "hovermode": "closest",
        "dragmode": "zoom",
    }


def _axis(metric: Metric, view: View) -> dict[str, Any]:
    name = html.escape(title(metric))
    if view == "changes":
        unit = {"%": " (%)", "points": " (percentage points)"}.get(metric.change_unit, "")
        text = f"change in {name}{unit}" if metric.kind == "task" else f"change{unit}"
    else:
        unit = "" if metric.unit in ("", "share") else f" ({html.escape(metric.unit)})"
        text = f"{name}{unit}"
    percent = {"tickformat": ".3~%"} if metric.unit == "share" and view == "values" else {}
    return percent | {
        "title": {"text": text, "standoff": 8, "font": {"size": 12}},
        "zeroline": view == "changes",
        "zerolinecolor": "var(--soft)",
        "zerolinewidth": 1,
        "gridcolor": "var(--grid)",
        "linecolor": "var(--grid)",
        "nticks": 6,
        "automargin": True,
    }


def _alt(section: Section, metric: Metric) -> str:
    shown = []
    for arm in section.arms:
        loss, score = arm.cells[section.task_loss].value, arm.cells[metric].value
        if loss is not None and score is not None:
            scale = 100.0 if metric.unit == "share" else 1.0
            shown.append(f"{arm.name} {number(loss.mean)}, {number(score.mean * scale)}")
    return f"Scatter plot of task loss and {title(metric)}, means over seeds: " + "; ".join(shown) + "."
