"""The figures of a model's page: each says what it shows; where one is missing, why."""

from collections.abc import Callable
from dataclasses import dataclass, field

from legibility.tradeoff._record import RunRecord
from legibility.tradeoff.model_page._charts import bars_svg, esc, graph_svg, lines_svg, number
from legibility.tradeoff.model_page._picture import (
    CircuitPicture,
    ExamplePicture,
    Grid,
    ModelPicture,
    Reading,
    StudentPicture,
    UnitsPicture,
)
from legibility.tradeoff.model_page._png import grid_png, joined

_LONG = 160  # positions of a sequence that are written out


@dataclass(frozen=True)
class Figure:
    """One small picture.

    Args:
        title: its name.
        markup: HTML, of which every name is escaped.
        caption: what this one says, in words.
        wide: whether it takes the whole row.
    """

    title: str
    markup: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Part:
    """Pictures of one kind.

    Args:
        name: identifier, the key of `ModelPicture.missing`.
        title: heading.
        shows: what is seen.
        read: how to read it.
        figures: the pictures.
        missing: why there are none, or not all.
    """

    name: str
    title: str
    shows: str
    read: str
    figures: list[Figure] = field(default_factory=list)
    missing: str | None = None


def parts_of(picture: ModelPicture, record: RunRecord) -> list[Part]:
    """All kinds of pictures in the order of the page, missing ones too.

    Args:
        picture: what is drawn.
        record: the run.
    """
    makers: list[Callable[[ModelPicture], Part]] = [
        _units, _answers, _lens, _circuits, _graph, _weights, _students, _attention,
    ]  # fmt: skip
    found = []
    for make in makers:
        part = make(picture)
        missing = picture.missing.get(part.name)
        if not part.figures and missing is None:
            missing = "nothing of this kind was found in this model"
        found.append(Part(part.name, part.title, part.shows, part.read, part.figures, missing))
    return [*found, _guards(record)]


def _image(grid: Grid, alt: str, *, cell: float = 5.0, tall: float | None = None, hatched: bool = False) -> str:
    """A grid drawn with square cells, or `tall` ones, as wide as its frame allows."""
    style = f"width:{max(cell * len(grid[0]), 24):.0f}px"
    if tall is not None:
        style += f";height:{tall * len(grid):.0f}px"
    return f'<img class="grid-image" style="{style}" src="{grid_png(grid, hatched=hatched)}" alt="{esc(alt)}">'


def _units(picture: ModelPicture) -> Part:
    figures = []
    for one in picture.units:
        if not one.values:
            continue
        alt = (
            f"Heat map of layer {one.layer}: {len(one.shown)} of {one.units} units as rows, {len(one.columns)} examples or "
            f"positions as columns, {one.live} units live."
        )
        names = f'<p class="columns">{_runs(one.columns)}</p>'
        dimension = "" if one.dimension is None else f" Its activations fill {number(one.dimension)} directions."
        caption = f"{len(one.shown)} of {one.units} units, {one.live} of all vary.{dimension}"
        figures.append(Figure(one.layer, _image(one.values, alt, cell=6) + names, caption))
    return Part(
        "units",
        "Activations, by unit and input",
        f"What units say to single inputs, layer by layer ({picture.layers_found}). A row is a unit, a column an example, "
        "or a position of a sequence; columns are in the order of the answers written below, or of the text.",
        "Blue is above the unit's own mean, orange below; the full colour is three standard deviations. A row that changes "
        "colour just where the answer changes stands for that answer. Rows are grouped by the answer at which they are "
        "highest, so a diagonal of blue blocks means units that can be named; a chequerboard without blocks means that "
        "meaning is spread over many.",
        figures,
    )


def _runs(columns: list[str]) -> str:
    """Column names, each run of equal ones once."""
    runs: list[list[object]] = []
    for name in columns:
        if runs and runs[-1][0] == name:
            runs[-1][1] = int(str(runs[-1][1])) + 1
        else:
            runs.append([name, 1])
    if len(runs) > 40:  # a text
        glue = "" if max(map(len, columns)) == 1 else " "
        return f'<span class="text">{glue.join(_visible(name) for name in columns[:200])}</span>'
    return " ".join(f"<span>{esc(name)}<small>×{count}</small></span>" for name, count in runs)


def _visible(word: str) -> str:
    """A token as one can see it, escaped."""
    return esc(word.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍"))


def _answers(picture: ModelPicture) -> Part:
    figures = [_selective(one) for one in picture.units if one.by_answer]
    return Part(
        "concepts",
        "What units stand for",
        "Each unit's mean at each of the model's answers (or, where concept labels were given, at each value of the "
        "concept), and the share of its variance that they explain.",
        "A row with one blue cell is a unit of one answer. The bars say how much of each unit's variance the answers "
        "explain: near 1 the unit is the answer, near 0 it is about something else. This is a description, no control "
        "stands beside it: a last layer has to tell answers apart.",
        figures,
    )


def _selective(one: UnitsPicture) -> Figure:
    alt = f"Heat map of layer {one.layer}: {len(one.shown)} units as rows, {len(one.answers)} answers as columns."
    best = sorted(zip(one.selectivity, one.shown, strict=True), reverse=True)[:5]
    named = ", ".join(f"{unit} ({share:.2f})" for share, unit in best)
    counts = [0.0] * 20
    for share in one.selectivity:
        counts[min(19, int(share * 20))] += 1
    bars = bars_svg(
        counts, alt=f"Histogram of the variance explained, layer {one.layer}", low="0", high="1", note="explained"
    )
    cell = max(4.0, min(14.0, 160 / len(one.answers)))
    heads = "".join(f"<span>{_visible(name).replace(' ', '␣')}</span>" for name in one.answers)
    style = f"width:{max(cell * len(one.answers), 24):.0f}px"
    # Under their columns, as long as they are short.
    kind = "columns under" if max(map(len, one.answers)) <= 2 and cell >= 8 else "columns"
    names = f'<p class="{kind}" style="{style if kind != "columns" else ""}">{heads}</p>'
    caption = f"Columns: {len(one.answers)} answers. Most selective units: {named}."
    image = _image(one.by_answer, alt, cell=cell, tall=5)
    return Figure(one.layer, f'<div class="beside"><div>{image}{names}</div>{bars}</div>', caption)


def _lens(picture: ModelPicture) -> Part:
    lens = picture.lens
    figures = []
    if lens is not None:
        logit = [(float(i), value) for i, value in enumerate(lens.logit_kl)]
        lines = [("head as it is", logit)]
        if lens.tuned_kl:
            lines.append(("after translation", [(float(i), value) for i, value in enumerate(lens.tuned_kl)]))
        alt = "Bits from the model's answer by layer: " + "; ".join(
            f"{name} {number(value)}" for name, value in zip(lens.layers, lens.logit_kl, strict=True)
        )
        markup = lines_svg(
            lines, alt=alt, x_label="layer", y_label="bits from the answer", names=lens.layers, marks=[lens.information]
        )
        caption = f"Dashed: {number(lens.information)} bits, what is lost by knowing nothing of the input."
        if lens.why_not_tuned is not None:
            caption += f" The translation was not fitted: {lens.why_not_tuned}."
        figures.append(Figure("Lens over depth", markup, caption))
    return Part(
        "lens",
        "Lens, layer by layer",
        "What the model's own output head makes of each layer's activations, as a distance from the final answer.",
        "Where the line is low, the answer is there already and in the output's language. A gap between the two lines is "
        "an answer that is there but in another language; a high second line means that it isn't computed yet. A line "
        "above the dashes is worse than knowing nothing.",
        figures,
    )


def _circuits(picture: ModelPicture) -> Part:
    figures = []
    for one in picture.circuits:
        figures.append(_curve(one))
        for layer in one.layers:
            alt = f"Which {one.granularity} of {layer.layer} stay: {layer.kept} of {layer.parts}."
            caption = f"{layer.kept} of {layer.parts} {one.granularity} stay."
            figures.append(Figure(f"{layer.layer} ({one.granularity})", _image(layer.grid, alt, hatched=True), caption))
    return Part(
        "circuit",
        "The circuit",
        "How much of the model has to stay, the rest replaced by its mean, for it to go on answering as it does; and what "
        "stays at 90 % fidelity, layer by layer. Nodes are the units that a layer reads; edges its weights, rows written "
        "by columns read.",
        "Blue stays, white can go or was never alive. The earlier the curve rises, the smaller the part that explains the "
        "model. Small is only an achievement if an untrained model needs more: its size stands in the caption.",
        figures,
    )


def _curve(one: CircuitPicture) -> Figure:
    points = [(size, max(-0.2, fidelity)) for size, fidelity in one.curve]
    alt = f"Fidelity against size: .9 with {number(one.size_90)} and .99 with {number(one.size_99)} of {one.live} {one.granularity}."
    markup = lines_svg(
        [("fidelity", points)],
        alt=alt,
        x_label=f"{one.granularity} kept",
        y_label="fidelity",
        log_x=True,
        marks=[0.9, 0.99],
    )
    control = "no value" if one.control is None else f"{100 * one.control:.1f} %"
    caption = (
        f"{100 * one.size_90:.1f} % of {one.live} live {one.granularity} have fidelity .9, {100 * one.size_99:.1f} % .99. "
        f"Untrained: {control} for .9."
    )
    return Figure(f"Fidelity by size, {one.granularity}", markup, caption)


def _graph(picture: ModelPicture) -> Part:
    graph = picture.graph
    figures = []
    if graph is not None:
        alt = f"{len(graph.edges)} strongest of {graph.weights} weights between {len(graph.nodes)} units, {graph.clusters} clusters."
        score = "not measured" if graph.score is None else number(graph.score)
        q = (
            ""
            if graph.modularity is None
            else f", modularity {graph.modularity:.2f} (sparse graphs have some by themselves)"
        )
        caption = (
            f"The {len(graph.edges)} strongest of {graph.weights:,} weights, {graph.clusters} clusters{q}. Relative "
            f"modularity of all weights, beyond the same weights in other places: {score}. Dashed: negative."
        )
        figures.append(Figure("Weight graph", graph_svg(graph, alt), caption, wide=True))
    return Part(
        "graph",
        "Weights as a graph",
        "Layers that follow one another, from the inputs on the left to the last on the right, after rescaling that doesn't "
        "change the function. Units of one cluster have one colour and stand together.",
        "Bundles of one colour that run from left to right are parts that work by themselves; grey lines join different "
        "clusters. Many grey lines mean that everything depends on everything.",
        figures,
    )


def _weights(picture: ModelPicture) -> Part:
    figures = []
    for one in picture.weights:
        shape = " × ".join(map(str, one.shape))
        alt = f"{one.name}, {shape}: {100 * one.zeros:.1f} % exact zeros, largest {number(one.largest)}."
        note = f"{100 * one.zeros:.1f} % exact zeros"
        bars = bars_svg(
            one.counts, alt=f"Histogram of {alt}", low=number(-one.largest), high=number(one.largest), note="0"
        )
        cell = max(2.0, min(6.0, 200 / len(one.grid[0])))
        figures.append(Figure(one.name, _image(one.grid, f"Map of {alt}", cell=cell) + bars, f"{shape}, {note}."))
    return Part(
        "weights",
        "Weights",
        "Each matrix coarsened to what is largest in each patch, and how its nonzero weights are spread.",
        "White patches are exact zeros. Rows without colour are dead units, columns without colour unread ones. A narrow "
        "peak with long tails is a matrix in which few weights do the work.",
        figures,
    )


def _students(picture: ModelPicture) -> Part:
    figures = []
    for one in picture.students:
        figures.append(_student(one))
    for one in picture.students[:4]:
        groups = (("comes closest", one.learnt), ("is farthest", one.missed))
        inner = "".join(
            f'<div><h4>{title}</h4><div class="readings">'
            + "".join(_reading(picture.examples[reading.example], reading) for reading in readings)
            + "</div></div>"
            for title, readings in groups
            if readings
        )
        if inner:
            figures.append(Figure(f"Where {one.family} …", f'<div class="pair">{inner}</div>', wide=True))
    return Part(
        "students",
        "What held-out students learn and miss",
        "Students of other architectures that took no part in training learnt the model's answers on the first half of the "
        "examples, and were asked about others. Shown are the examples on which each comes closest and is farthest.",
        "Nats are the distance between the student's and the model's distribution on that example. What several different "
        "students miss alike is where the model does something that they don't find; look there first. Orange letters in a "
        "text are positions at which the student is far off, hover for both answers.",
        figures,
    )


def _student(one: StudentPicture) -> Figure:
    kl = "diverged" if one.kl is None else f"{number(one.kl)} nats"
    rows = "".join(
        f"<tr><th scope=row>{esc(answer)}</th><td>{esc(count)}</td><td>{esc(nats)}</td></tr>"
        for answer, count, nats in one.by_answer
    )
    table = (
        f'<table class="small-table"><thead><tr><th scope=col>model says</th><th scope=col>times</th><th scope=col>nats</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )
    line = [(10.0 * index, value) for index, value in enumerate(one.spread)]
    alt = (
        f"Deciles of the divergence of {one.family}: median {number(one.spread[len(one.spread) // 2])} nats."
        if line
        else ""
    )
    chart = lines_svg([("nats", line)], alt=alt, x_label="percent of positions", y_label="nats, up to") if line else ""
    return Figure(one.family, chart + table, f"{kl} on average, agrees on {100 * one.agreement:.1f} %.")


def _reading(example: ExamplePicture, reading: Reading) -> str:
    nats = [value for value in reading.nats if value is not None]
    mean = f"{number(sum(nats) / len(nats))} nats" if nats else ""
    if example.words and len(reading.nats) == len(example.words):
        return f'<p class="text">{_coloured(example, reading)} <small>{esc(example.title)}, {mean}</small></p>'
    if example.words:
        body = f'<span class="text">{esc(" ".join(example.words[:_LONG]))}</span>'
    else:
        cell = max(2.0, min(7.0, 180 / max(1, len(example.grid[0]))))
        body = _image(example.grid, f"Example: {example.title}", cell=cell)
    said = f"model {reading.model[0]}, student {reading.student[0]}" if reading.model else ""
    return f'<div class="example">{body}<small>{esc(example.title)}<br>{esc(said)}<br>{esc(mean)}</small></div>'


def _coloured(example: ExamplePicture, reading: Reading) -> str:
    most = max([value for value in reading.nats if value is not None] + [1e-9])
    parts = []
    for word, nats, model, student in zip(example.words, reading.nats, reading.model, reading.student, strict=True):
        shown = _visible(word)
        if nats is None:
            parts.append(f"<span>{shown}</span>")
            continue
        title = f"then model {model!r}, student {student!r}: {number(nats)} nats"
        parts.append(f'<span style="--a:{nats / most:.2f}" title="{esc(title)}">{shown}</span>')
    return ("" if all(len(word) == 1 for word in example.words) else " ").join(parts[:_LONG])


def _attention(picture: ModelPicture) -> Part:
    figures = []
    for one in picture.attention:
        alt = f"Attention of {len(one.heads)} heads of {one.layer}, from reading positions (rows) to read positions."
        image = _image(joined(one.heads, gap=2), alt, cell=max(1.5, min(5, 130 / len(one.heads[0]))))
        figures.append(Figure(one.layer, image, f"{len(one.heads)} heads, mean over examples."))
    return Part(
        "attention",
        "Attention",
        "From each position (row) where each head looks (column), mean over examples.",
        "A diagonal is a head that looks at its own position, a line beside it at the one before, a column at one place "
        "whatever is read; an even triangle looks everywhere.",
        figures,
    )


def _guards(record: RunRecord) -> Part:
    rows = "".join(
        f"<tr><th scope=row>{esc(name)}</th><td>{'–' if value is None else number(value)}</td></tr>"
        for name, value in record.guards.items()
    )
    table = f'<table class="small-table"><tbody>{rows}</tbody></table>'
    return Part(
        "guards",
        "Guards",
        "Quantities that betray a degenerate solution: size, rank and live units of the taps.",
        "A rank that collapses, norms that shrink and units that die are how a model becomes trivial instead of legible. None "
        "has a better direction; compare with a plain run.",
        [Figure("Guards of the taps", table)] if rows else [],
        None if rows else "no taps were named: `taps=` of the report",
    )
