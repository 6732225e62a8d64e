"""What a model's page is drawn from: plain numbers and names, written as one compressed JSON file beside the record."""

import dataclasses
import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from legibility.tradeoff.page._render import write_all_or_nothing
from legibility.tradeoff.records._check import built

FORMAT = "legibility.model-picture/1"

Grid = list[list[int]]
"""Rows of whole numbers from -99 to 99: a value in hundredths of the largest that is told apart."""


@dataclass(frozen=True)
class ExamplePicture:
    """How one example looks.

    Args:
        title: its number, and its true answer where that is known.
        words: tokens in order; empty if it isn't a sequence of tokens.
        grid: numbers as they are drawn: pixels, features as one row, or time by features; empty for tokens.
    """

    title: str
    words: list[str] = field(default_factory=list)
    grid: Grid = field(default_factory=list)


@dataclass(frozen=True)
class UnitsPicture:
    """What a layer's units say to some examples, or positions of some sequences.

    Args:
        layer: its name.
        units: how many it has.
        live: how many of them vary.
        shown: numbers of the units that are drawn, grouped by the answer at which they are highest.
        columns: what each column is: an answer, or a token.
        values: a row for each unit shown, standardised: 99 is three standard deviations above its mean.
        answers: answers that units are compared by.
        by_answer: a row for each unit shown: its mean at each answer, in the same scale.
        selectivity: for each unit shown, the share of its variance that the answers explain, 0 to 1.
        dimension: participation ratio of the layer; None if it doesn't vary.
    """

    layer: str
    units: int
    live: int
    shown: list[int]
    columns: list[str]
    values: Grid
    answers: list[str]
    by_answer: Grid
    selectivity: list[float]
    dimension: float | None


@dataclass(frozen=True)
class LensPicture:
    """What the output head makes of each layer.

    Args:
        layers: from early to late, without the last.
        logit_kl: bits from the model's answer, the head applied as it is.
        tuned_kl: the same after the best affine translation; empty if that wasn't measured.
        information: bits that the model's answers carry about the input.
        why_not_tuned: why the second is empty.
    """

    layers: list[str]
    logit_kl: list[float]
    tuned_kl: list[float]
    information: float
    why_not_tuned: str | None = None


@dataclass(frozen=True)
class MaskPicture:
    """Which parts of one layer are in a circuit.

    Args:
        layer: its name.
        kept: how many parts stay.
        parts: how many there are, dead ones too.
        grid: 99 where all stays, 0 where nothing does, -99 beyond the last part. Nodes in rows, or written by read.
    """

    layer: str
    kept: int
    parts: int
    grid: Grid


@dataclass(frozen=True)
class CircuitPicture:
    """The part of a model that answers like all of it.

    Args:
        granularity: `"nodes"` or `"edges"`.
        size_90: share of the live parts that has fidelity .9.
        size_99: the same for .99.
        control: `size_90` of the untrained model; None if it has none.
        live: number of live parts.
        curve: pairs of size and fidelity.
        layers: what stays at .9.
    """

    granularity: str
    size_90: float
    size_99: float
    control: float | None
    live: int
    curve: list[list[float]]
    layers: list[MaskPicture]


@dataclass(frozen=True)
class GraphPicture:
    """Layers that follow one another, and the strongest weights between their units.

    Args:
        layers: names of the columns: the inputs, then each layer.
        sizes: number of units in each column.
        nodes: column, unit and cluster of each unit that is drawn; cluster -1: on its own.
        edges: indices of two nodes, and the weight in hundredths of the largest.
        weights: number of weights that aren't zero.
        clusters: how many clusters there are.
        modularity: of this clustering of the edges drawn; None if there is none.
        score: the relative modularity of all weights; None if it wasn't measured.
    """

    layers: list[str]
    sizes: list[int]
    nodes: list[list[int]]
    edges: list[list[int]]
    weights: int
    clusters: int
    modularity: float | None
    score: float | None


@dataclass(frozen=True)
class Reading:
    """What a held-out student made of one example.

    Args:
        example: index into `ModelPicture.examples`.
        nats: divergence from the model's answer; of a sequence for each position, None where it doesn't count.
        model: the model's top answer; of a sequence, at each position.
        student: the student's.
    """

    example: int
    nats: list[float | None]
    model: list[str]
    student: list[str]


@dataclass(frozen=True)
class StudentPicture:
    """One held-out student.

    Args:
        family: its name.
        kl: mean nats on what it hadn't seen; None if it diverged.
        agreement: share of positions with the model's top answer.
        by_answer: for each of the model's answers: the answer, how often, mean nats.
        spread: deciles of the nats over positions, from lowest to highest.
        learnt: examples that it has best.
        missed: examples that it has worst.
    """

    family: str
    kl: float | None
    agreement: float
    by_answer: list[list[str]]
    spread: list[float]
    learnt: list[Reading]
    missed: list[Reading]


@dataclass(frozen=True)
class WeightPicture:
    """How one weight matrix is filled.

    Args:
        name: of the parameter.
        shape: its shape.
        zeros: share of exact zeros.
        largest: the largest size.
        counts: number of nonzero weights in equal bins from `-largest` to `largest`.
        grid: the matrix, coarsened: of each patch the largest in size, 99 for `largest`.
    """

    name: str
    shape: list[int]
    zeros: float
    largest: float
    counts: list[int]
    grid: Grid


@dataclass(frozen=True)
class AttentionPicture:
    """Where heads look, mean over examples.

    Args:
        layer: the module's name.
        heads: for each head a row for each reading position: 99 for all of its attention.
    """

    layer: str
    heads: list[Grid]


@dataclass(frozen=True)
class ModelPicture:
    """Everything that a model's page shows beside its run record.

    Args:
        model: the class of the primary.
        layers_found: how its layers were found.
        examples: those that are drawn.
        units: by layer.
        lens: over depth.
        circuits: by granularity.
        graph: of the longest chain of layers.
        students: by family.
        weights: by matrix.
        attention: by layer.
        missing: why a picture isn't there, by its name.
        format: name and version.

    Example:
        >>> ModelPicture("Sequential", "the blocks", missing={"lens": "no residual stream"}).missing["lens"]
        'no residual stream'
    """

    model: str
    layers_found: str
    examples: list[ExamplePicture] = field(default_factory=list)
    units: list[UnitsPicture] = field(default_factory=list)
    lens: LensPicture | None = None
    circuits: list[CircuitPicture] = field(default_factory=list)
    graph: GraphPicture | None = None
    students: list[StudentPicture] = field(default_factory=list)
    weights: list[WeightPicture] = field(default_factory=list)
    attention: list[AttentionPicture] = field(default_factory=list)
    missing: Mapping[str, str] = field(default_factory=dict)
    format: str = FORMAT


def page_path(record: str | os.PathLike[str]) -> Path:
    """The page that belongs to a record: `model.html` beside `record.json`, `model-2.html` beside `record-2.json`.

    Example:
        >>> page_path("runs/record-2.json").name
        'model-2.html'
    """
    path = Path(record)
    return path.with_name(_sibling(path, "model") + ".html")


def picture_path(record: str | os.PathLike[str]) -> Path:
    """The numbers that belong to a record: `picture.json.gz` beside `record.json`.

    Example:
        >>> picture_path("runs/plain.json").name
        'plain-picture.json.gz'
    """
    path = Path(record)
    return path.with_name(_sibling(path, "picture") + ".json.gz")


def _sibling(path: Path, name: str) -> str:
    return path.stem.replace("record", name, 1) if path.stem.startswith("record") else f"{path.stem}-{name}"


def save_picture(picture: ModelPicture, path: str | os.PathLike[str]) -> Path:
    """Writes the numbers as gzipped JSON, all or nothing, and returns the path.

    Raises:
        ValueError: a number that isn't finite.
    """
    text = json.dumps(dataclasses.asdict(picture), separators=(",", ":"), allow_nan=False)
    return write_all_or_nothing(path, gzip.compress(text.encode("utf-8", "replace"), mtime=0))


def load_picture(path: str | os.PathLike[str]) -> ModelPicture:
    """Reads what `save_picture` wrote; every field is checked.

    Raises:
        ValueError: not such a file, or of another version.
        FileNotFoundError: no such file.
    """
    data = Path(path).read_bytes()
    try:
        payload = json.loads(gzip.decompress(data))
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: not a model's picture: {error}. Was the file truncated? Measure again.") from error
    found = payload.get("format") if isinstance(payload, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: `format` is {found!r}, this version of legibility reads {FORMAT!r}; measure again")
    return built(ModelPicture, payload, str(path))
