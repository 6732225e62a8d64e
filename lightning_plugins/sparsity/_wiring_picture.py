"""Draws a network as it stands: units on their places, weights as lines."""

from collections.abc import Sequence

from legibility.lightning_plugins.sparsity._wiring import Wiring

_WIDTH, _LAYER, _MARGIN = 480, 110, 46
_COLOURS = {True: "#2166ac", False: "#b2182b"}  # positive, negative: blue and red, told apart by the colour-blind


def wiring_picture(wiring: Wiring, *, inputs: Sequence[str] = (), outputs: Sequence[str] = (), title: str = "") -> str:
    """One chain of layers as an SVG picture, inputs below.

    Width is the weight's size over the largest of its layer, blue is positive, red negative; zeros are not drawn. A
    convolution's filter is drawn as one line of its summed absolute weight, in grey. Units without any weight are left out.

    Args:
        wiring: Places and weights (``WiringCost(...).wiring``); its first chain is drawn.
        inputs: Names of the units of the first line, in the order of the weight's columns.
        outputs: Names of the units of the last, in the order of the weight's rows.
        title: Above.

    Returns:
        The picture's text, to be written to a ``.svg`` file.

    Raises:
        ValueError: Another number of names than of units.

    Example:
        >>> from torch import nn
        >>> from legibility.lightning_plugins.sparsity.structure._neurons import neurons
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> picture = wiring_picture(Wiring(neurons(net), nearest=0.1, slope=1.0), inputs=["x", "y"], outputs=["z"])
        >>> picture.count("<line"), picture.count("<circle")
        (9, 6)
    """
    layers = []
    reads = next(iter(wiring.wires.values())).reads
    by_line = {wires.reads: wires for wires in wiring.wires.values()}
    while reads in by_line and by_line[reads] not in layers:
        layers.append(by_line[reads])
        reads = layers[-1].writes
    lines = [layers[0].reads, *(wires.writes for wires in layers)]
    height = _LAYER * len(layers) + 2 * _MARGIN
    across = {line: (_MARGIN + wiring.positions(line) * (_WIDTH - 2 * _MARGIN)).tolist() for line in lines}
    down = {line: height - _MARGIN - _LAYER * index for index, line in enumerate(lines)}
    drawn = [f'<text x="{_WIDTH / 2}" y="15" text-anchor="middle">{_escaped(title)}</text>']
    used: dict[str, set[int]] = {line: set() for line in lines}
    for wires in layers:
        loads = wires.loads().cpu()
        signed = wires.weight.detach().cpu() if wires.weight.ndim == 2 and loads.shape == wires.weight.shape else None
        for row, column in loads.nonzero().tolist():
            colour = "#777" if signed is None else _COLOURS[bool(signed[row, column] > 0)]
            thick = 4 * float(loads[row, column] / loads.max())
            ends = (across[wires.reads][column], down[wires.reads], across[wires.writes][row], down[wires.writes])
            x1, y1, x2, y2 = (f"{value:.1f}" for value in ends)
            drawn.append(
                f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="{thick:.2f}"/>'
            )
            used[wires.reads].add(column)
            used[wires.writes].add(row)
    for line in lines:
        drawn += [f'<circle cx="{across[line][unit]:.1f}" cy="{down[line]}" r="4"/>' for unit in sorted(used[line])]
    for names, line, shift in ((inputs, lines[0], 20), (outputs, lines[-1], -10)):
        if names and len(names) != len(across[line]):
            raise ValueError(
                f"`{'inputs' if shift > 0 else 'outputs'}`: {len(across[line])} names expected, got {len(names)}."
            )
        for name, x in zip(names, across[line], strict=False):
            drawn.append(f'<text x="{x:.1f}" y="{down[line] + shift}" text-anchor="middle">{_escaped(name)}</text>')
    style = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12"'
    box = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    return "\n".join([f"<svg {style} {box}>", '<rect width="100%" height="100%" fill="white"/>', *drawn, "</svg>", ""])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
