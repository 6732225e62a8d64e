"""The trade-off picture as a file for papers and READMEs: the same panels as the page's, drawn by matplotlib."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from legibility.tradeoff._arms import Comparison, Metric, Section, front
from legibility.tradeoff._wording import heading, unit_and_direction
from legibility.tradeoff._wording import title as title_of
from legibility.tradeoff.page._grouping import Group, groups, strength
from legibility.tradeoff.page._picture import Spot, View, axis_title, has_changes, panels, spots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# The page's light colours; a picture in a file can't follow the reader's.
_COLOURS = {
    "var(--ink)": "#1b2128", "var(--soft)": "#59626c", "var(--grid)": "#e6e8eb", "var(--front)": "#d9dde2",
    "var(--c0)": "#0d82da", "var(--c1)": "#d35e01", "var(--c2)": "#198564", "var(--c3)": "#ac419e",
    "var(--c4)": "#6b4714", "var(--c5)": "#3986c5", "var(--c6)": "#872453", "var(--c7)": "#6f6d1b",
}  # fmt: skip
_MARKERS = {
    "circle": "o", "diamond": "D", "triangle-up": "^", "pentagon": "p", "triangle-down": "v", "star": "*",
    "hexagon": "h", "square": "s", "x": "X", "cross": "P",
}  # fmt: skip
_PANEL = (5.2, 3.3)
_SHOWN_NAME = 40
_FEW = 6


def draw_picture(comparison: Comparison, view: View | None = None) -> "Figure":
    """The trade-off as a matplotlib figure: a block for each recipe, in it a panel for each headline score.

    Drawn as on the page: small marks are runs, large ones means with 95 % intervals, a coloured line joins a method's
    strengths, the grey one the arms that no other beats in both, a dotted one leads to a control. Untrained controls,
    which stand far off, are left out.

    Args:
        comparison: from `compare`.
        view: `"changes"` against the baseline, paired by seed, or `"values"`; None for changes where there are any.

    Raises:
        ImportError: matplotlib is missing; the message says how to install it.
        ValueError: no arm has a headline score at a known task loss.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f'pictures need matplotlib ({error.name} is missing): pip install "legibility[pictures]"'
        ) from error
    drawn = [(section, metrics) for section in comparison.sections if (metrics := panels(section))]
    if not drawn:
        raise ValueError("`comparison` has no headline score at a known task loss, so there is nothing to draw")
    rows = [math.ceil(len(metrics) / 2) for _, metrics in drawn]
    columns = 2 if max(len(metrics) for _, metrics in drawn) > 1 else 1
    figure = Figure(figsize=(columns * _PANEL[0], sum(rows) * _PANEL[1] + 0.8 * len(drawn)), layout="constrained")
    blocks = figure.subfigures(len(drawn), 1, squeeze=False, height_ratios=rows)
    for block, (section, metrics), count in zip(blocks[:, 0], drawn, rows, strict=True):
        shown = view or ("changes" if has_changes(section) else "values")
        _block(block, section, metrics, shown, (count, columns), named=len(drawn) > 1)
    return figure


def picture_bytes(figure: "Figure", suffix: str) -> bytes:
    """The figure as a file of type `suffix`; the same figure gives the same bytes."""
    import io

    import matplotlib

    out = io.BytesIO()
    # No date and no random ids; text in SVG stays text.
    fixed: Any = {"svg.hashsalt": "legibility", "svg.fonttype": "none"}
    metadata: Mapping[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[
        suffix
    ]
    with matplotlib.rc_context(fixed):
        figure.savefig(out, format=suffix, dpi=150, metadata=dict(metadata), facecolor="white")
    return out.getvalue()


def _block(
    block: "SubFigure", section: Section, metrics: list[Metric], view: View, shape: tuple[int, int], *, named: bool
) -> None:
    from matplotlib.lines import Line2D

    axes = block.subplots(*shape, squeeze=False).ravel()
    shown = [group for group in groups(section) if not group.far]
    for panel, metric in zip(axes, metrics, strict=False):
        _panel(panel, section, metric, view, shown)
    for panel in axes[len(metrics) :]:
        panel.set_axis_off()
    if named:
        block.suptitle(_cut(heading(section)), parse_math=False, fontweight="bold")
    handles = [
        Line2D(
            [], [], linestyle="", marker=_MARKERS[group.look.symbol], color=_COLOURS[group.look.colour], markersize=8
        )
        for group in shown
    ]
    labels = [_cut(group.name) + (" (control)" if group.control else "") for group in shown]
    legend = block.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _panel(axes: "Axes", section: Section, metric: Metric, view: View, shown: list[Group]) -> None:
    found = spots(section, metric, view)
    scale = 100.0 if metric.unit == "share" and view == "values" else 1.0
    on = [arm.name for group in shown for arm in group.arms if arm.name in found]
    best = [found[arm.name] for arm in front(section, metric) if arm.name in on]
    _line(axes, best, scale, "var(--front)", linewidth=4, zorder=1)
    for group in shown:
        _method(axes, group, found, metric, scale)
    _frame(axes, section, metric, view)


def _method(axes: "Axes", group: Group, found: Mapping[str, Spot], metric: Metric, scale: float) -> None:
    """One method: the line that joins its strengths or ties its controls to their arms, its runs, its means."""
    members = [found[arm.name] for arm in group.arms if arm.name in found]
    colour, marker, few = _COLOURS[group.look.colour], _MARKERS[group.look.symbol], len(members) <= _FEW
    if not group.control:
        _line(axes, members, scale, group.look.colour, linewidth=1.2, zorder=2)
    for spot in members:
        owner = None if spot.arm.control_of is None else found.get(spot.arm.control_of.matches or "")
        if owner is not None:
            _line(axes, [owner, spot], scale, group.look.colour, linestyle=":", linewidth=1.2, zorder=2)
    axes.scatter(
        [spot.x.values[seed] for spot in members for seed in spot.seeds],
        [scale * spot.y.values[seed] for spot in members for seed in spot.seeds],
        marker=marker, s=14, color=colour, alpha=0.4, linewidths=0, zorder=3,
    )  # fmt: skip
    axes.errorbar(
        [spot.x.mean for spot in members],
        [scale * spot.y.mean for spot in members],
        xerr=[spot.x.half_width or 0.0 for spot in members],
        yerr=[scale * (spot.y.half_width or 0.0) for spot in members],
        fmt=marker, color=colour, markersize=8 if few else 6, markeredgecolor="white", elinewidth=1,
        capsize=2 if few else 0, zorder=4,
    )  # fmt: skip
    named = [] if group.control or len(members) < 2 else members if few else [members[0], members[-1]]
    for spot in members:
        label = strength(spot.arm) if spot in named else ""
        label += " †" if spot.arm.cells[metric].trained_on else ""
        place = (spot.x.mean, scale * spot.y.mean)
        axes.annotate(label, place, (6, 4), textcoords="offset points", fontsize=8, color=_COLOURS["var(--soft)"])


def _frame(axes: "Axes", section: Section, metric: Metric, view: View) -> None:
    """Titles, a quiet grid, and where it is better."""
    soft, grid = _COLOURS["var(--soft)"], _COLOURS["var(--grid)"]
    kind = unit_and_direction(metric)
    text = title_of(metric) + (f" ({kind})" if kind else "")
    axes.set_title(_cut(text), loc="left", fontsize=10, parse_math=False)
    axes.set_xlabel(axis_title(section.task_loss, view), fontsize=9, color=soft, parse_math=False)
    unit = " (%)" if metric.unit == "share" and view == "values" else ""
    axes.set_ylabel(_cut(axis_title(metric, view) + unit), fontsize=9, color=soft, parse_math=False)
    axes.grid(color=grid, linewidth=0.8, zorder=0)
    axes.tick_params(length=0, labelsize=8, labelcolor=soft)
    axes.margins(0.08)
    axes.spines[:].set_visible(False)
    if view == "changes":
        axes.axhline(0, color="#c9ced4", linewidth=1.2, zorder=0.5)
        axes.axvline(0, color="#c9ced4", linewidth=1.2, zorder=0.5)
    if metric.direction is not None:
        higher = metric.direction == "higher"
        axes.annotate(
            "↖ better" if higher else "↙ better", (0.01, 0.98 if higher else 0.02), xycoords="axes fraction",
            va="top" if higher else "bottom", fontsize=8, color=soft,
        )  # fmt: skip


def _line(axes: "Axes", members: list[Spot], scale: float, colour: str, **style: Any) -> None:
    if len(members) > 1:
        x, y = [spot.x.mean for spot in members], [scale * spot.y.mean for spot in members]
        axes.plot(x, y, color=_COLOURS[colour], **style)


def _cut(text: str) -> str:
    """Short enough to be drawn; characters that no font has are drawn as boxes, control characters as nothing."""
    shown = "".join(character for character in text if character.isprintable())
    return shown if len(shown) <= _SHOWN_NAME else shown[: _SHOWN_NAME - 1] + "…"
