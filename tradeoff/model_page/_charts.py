"""Small drawings in SVG, coloured by the page's style: lines over depth or size, bars, graphs. All text is escaped."""

import html
import math
from collections.abc import Sequence

from legibility.tradeoff.model_page._picture import GraphPicture

_WIDTH, _HEIGHT = 300, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 10, 34
_CLUSTERS = 8

Line = tuple[str, Sequence[tuple[float, float]]]


def esc(text: object) -> str:
    """Text that can stand in HTML and in attributes."""
    return html.escape(str(text), quote=True)


def number(value: float) -> str:
    """Three digits, for people.

    Example:
        >>> [number(v) for v in (0.0, 0.12345, 12.345, 12345.6, 1e-7)]
        ['0', '0.123', '12.3', '12,346', '1e-07']
    """
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def lines_svg(
    lines: Sequence[Line],
    *,
    alt: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    names: Sequence[str] = (),
    marks: Sequence[float] = (),
) -> str:
    """Lines with points, from (x, y) pairs; a horizontal mark is dashed.

    Args:
        lines: name and points of each.
        alt: what it shows, for those who don't see it.
        x_label: under the x axis.
        y_label: above the y axis.
        log_x: logarithmic x axis.
        names: what stands at x = 0, 1, 2, ... in place of numbers.
        marks: y values of dashed lines.

    Returns:
        an `svg` element.
    """
    points = [point for _, line in lines for point in line]
    if not points:
        return ""
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(0.0, *(y for _, y in points), *marks), max(*(y for _, y in points), *marks, 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        if log_x:
            share = math.log(x / low_x) / max(math.log(high_x / low_x), 1e-9)
        else:
            share = (x - low_x) / max(high_x - low_x, 1e-9)
        across = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        up = _TOP + (1 - (y - low_y) / max(high_y - low_y, 1e-12)) * (_HEIGHT - _TOP - _BOTTOM)
        return across, up

    parts = []
    for tick in _ticks(low_y, high_y):
        y = place(low_x, tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for mark in marks:
        y = place(low_x, mark)[1]
        parts.append(f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    at = list(range(len(names))) if names else [low_x, high_x]
    every = max(1, math.ceil(len(at) / 6))
    for index, x in enumerate(at):
        if index % every and index != len(at) - 1:
            continue
        text = names[index] if names else number(x)
        anchor = "start" if index == 0 and len(at) > 1 else "end" if index == len(at) - 1 else "middle"
        parts.append(
            f'<text x="{place(x, low_y)[0]:.1f}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="{anchor}">{esc(_short(text))}</text>'
        )
    parts.append(f'<text class="label" x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{esc(x_label)}</text>')
    for index, (name, line) in enumerate(lines):
        placed = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="c{index}" points="{path}"/>')
        for (x, y), (given, value) in zip(placed, line, strict=True):
            told = names[int(given)] if names else number(given)
            title = f"<title>{esc(name)}: {esc(told)}: {number(value)}</title>"
            parts.append(f'<circle class="c{index}" cx="{x:.1f}" cy="{y:.1f}" r="2.4">{title}</circle>')
    return (
        f'<p class="axis">{esc(y_label)}{_keys(lines)}</p>'
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{esc(alt)}">{"".join(parts)}</svg>'
    )


def _keys(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    return "".join(f' <span class="key c{index}">{esc(name)}</span>' for index, (name, _) in enumerate(lines))


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10(max(high - low, 1e-12)))
    while (high - low) / step > 4:
        step *= 2
    while (high - low) / step < 2:
        step /= 2
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, first + 12) if place * step <= high + 1e-9 * step]


def _short(text: str, most: int = 14) -> str:
    """The end of a long name, which is what differs."""
    return text if len(text) <= most else "…" + text[1 - most :]


def bars_svg(
    counts: Sequence[float], *, alt: str, low: str, high: str, note: str = "", titles: Sequence[str] = ()
) -> str:
    """Bars of equal width over an axis of which both ends are named.

    Returns:
        an `svg` element.
    """
    width, height = 220, 74
    most = max([*counts, 1e-12])
    each = width / max(1, len(counts))
    parts = []
    for index, count in enumerate(counts):
        size = (height - 16) * count / most
        title = f"<title>{esc(titles[index])}</title>" if titles else ""
        if count > 0:
            parts.append(
                f'<rect class="bar" x="{index * each:.2f}" y="{height - 16 - max(size, 0.7):.2f}" '
                f'width="{max(each - 0.4, 0.6):.2f}" height="{max(size, 0.7):.2f}">{title}</rect>'
            )
    parts.append(f'<line class="axis-line" x1="0" x2="{width}" y1="{height - 16}" y2="{height - 16}"/>')
    for x, anchor, text in ((0, "start", low), (width / 2, "middle", note), (width, "end", high)):
        parts.append(f'<text x="{x}" y="{height - 4}" text-anchor="{anchor}">{esc(text)}</text>')
    return f'<svg class="bars" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(alt)}">{"".join(parts)}</svg>'


def graph_svg(graph: GraphPicture, alt: str) -> str:
    """Columns of units, inputs on the left, joined by their strongest weights; a colour for each cluster.

    Returns:
        an `svg` element.
    """
    width, height, pad = 640, 360, 24
    columns = len(graph.layers)
    of_column = [[index for index, node in enumerate(graph.nodes) if node[0] == column] for column in range(columns)]
    places: dict[int, tuple[float, float]] = {}
    for column, members in enumerate(of_column):
        x = pad + (width - 2 * pad) * (column / max(1, columns - 1))
        # Units of one cluster stand together: names of units mean nothing.
        ordered = sorted(members, key=lambda index: (graph.nodes[index][2] % 10_000, graph.nodes[index][1]))
        for place, index in enumerate(ordered):
            places[index] = (x, pad + (height - 2 * pad - 14) * ((place + 0.5) / len(ordered)))
    parts = []
    for one, other, weight in sorted(graph.edges, key=lambda edge: abs(edge[2])):
        (x1, y1), (x2, y2) = places[one], places[other]
        own = graph.nodes[one][2]
        kind = f"k{own % _CLUSTERS}" if own == graph.nodes[other][2] and own >= 0 else "k-"
        middle = (x1 + x2) / 2
        dash = ' stroke-dasharray="3 2"' if weight < 0 else ""
        parts.append(
            f'<path class="{kind}" d="M{x1:.0f} {y1:.1f}C{middle:.0f} {y1:.1f} {middle:.0f} {y2:.1f} {x2:.0f} {y2:.1f}" '
            f'stroke-width="{0.4 + 2.2 * abs(weight) / 99:.2f}" stroke-opacity="{0.2 + 0.7 * abs(weight) / 99:.2f}"{dash}/>'
        )
    for index, (x, y) in places.items():
        column, unit, cluster = graph.nodes[index]
        kind = f"k{cluster % _CLUSTERS}" if cluster >= 0 else "k-"
        title = f"<title>{esc(graph.layers[column])}, unit {unit}{f', cluster {cluster + 1}' if cluster >= 0 else ''}</title>"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>')
    for column, name in enumerate(graph.layers):
        x = pad + (width - 2 * pad) * (column / max(1, columns - 1))
        anchor = "start" if column == 0 else "end" if column == columns - 1 else "middle"
        shown = f"{_short(name, 22)} ({len(of_column[column])} of {graph.sizes[column]})"
        parts.append(f'<text x="{x:.0f}" y="{height - 6}" text-anchor="{anchor}">{esc(shown)}</text>')
    return (
        f'<svg class="graph" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(alt)}">{"".join(parts)}</svg>'
    )
