"""Everything beside the held-out students that applies to a finished model: chosen, announced, taken."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from legibility.lightning_plugins.report._queries import Call, Subject
from legibility.lightning_plugins.report.choice._applicable import NAMES, Applicable, applicable, ready_controls
from legibility.lightning_plugins.report.choice._layers import Layers, asked, head_of, layers_of
from legibility.lightning_plugins.report.choice._readings import Views, unread
from legibility.lightning_plugins.report.choice._subject_material import by_number
from legibility.lightning_plugins.report.choice._within_budget import Further, Progress, missing, take
from legibility.scores import (
    Control,
    Layer,
    Material,
    Queries,
    Score,
    further_scores,
    headline_scores,
    structure_scores,
)
from legibility.students import Student
from legibility.tradeoff import ScoreEntry

_MOST_NUMBERS = 1e8  # 400 MB
_PASSES = 8  # of the model over all examples: two layers' worth for it, and as much and its answers for two controls
_TIMED = 32  # examples; queries are at least as many
_DRAWING = 0.15  # seconds of any page
_LOADING = 0.35  # seconds of importing what draws, once in a process
_PICTURES = 12  # how often a page's pictures ask the first examples
_CONTROLS = 0.1  # seconds, whatever the model: copies of it, a layer with its controls
_SHARDED = "the weights are spread over ranks, and this score needs copies of the whole model: measure the saved model"


@dataclass(frozen=True)
class Choice:
    """What the user chose.

    Attributes:
        patterns: Shell patterns over the scores' names.
        left: Says how many seconds are left of the budget.
        why_none: What is said of each score if nothing is left.
        tell: Called with what will be done and what it is estimated to take.
        students: Held-out architectures that the user named, or None.
        students_seconds: What fitting them took, per 1000 positions and model.
    """

    patterns: Sequence[str]
    left: Callable[[], float]
    why_none: str
    tell: Callable[[str], None]
    students: Sequence[Student] | None
    students_seconds: float


@dataclass(frozen=True, eq=False)
class Seen:
    """The model as scores and pictures see it.

    Attributes:
        material: Asked by number; None if it can't be.
        inputs: What students read.
        views: Its layers and its head.
        why_not: Why there is no material.
    """

    material: Material | None
    inputs: Tensor
    views: Views
    why_not: str | None = None


def look_at(subject: Subject, queries: Queries, used: list[Call], temperature: float) -> Seen:
    """Finds out how the model can be asked, what its layers are and what reads the last of them.

    Args:
        subject: The model, in evaluation mode.
        queries: Its answers.
        used: The calls that they come from.
        temperature: What the logits were divided by.

    Returns:
        What was found; nothing is raised.
    """
    nothing = Views(Layers([], False, "none"), [], "the model can't be asked", None, "the model can't be asked")
    if subject.sharded:
        return Seen(None, queries.inputs, nothing, _SHARDED)
    try:
        material, inputs = by_number(subject, queries, used, temperature)
        assert material.model is not None
        inside = {name for name, _ in material.model.named_modules()}
        recorder = subject.recorder()
        taps = [name for tap in recorder.taps if (name := tap.removeprefix(f"{recorder.model}.")) in inside]
        layers = layers_of(material.model, taps)
        head = head_of(material, layers.names[-1]) if layers.names else []
        no_head = (
            None
            if head
            else (
                "no output head was found: what follows the last layer is no chain of modules that gives the model's answers"
            )
        )
        plain = _is_plain(used) and recorder.reads is None and subject.output is None
        not_plain = None if plain else "the model reads more than one tensor, and neighbours of an input are one"
        tap = taps[0] if taps else None
        return Seen(material, inputs, Views(layers, head, no_head, _concepts(used), not_plain, tap))
    except Exception as error:  # noqa: BLE001 - somebody else's model: what can't be asked says why
        why = f"the model can't be asked example by example: {error}"
        return Seen(None, queries.inputs, replace(nothing, no_head=why), why)


def further(seen: Seen, subject: Subject, choice: Choice, *, classifies: bool, progress: Progress) -> Further:
    """Takes what applies, cheapest first, within the budget.

    Args:
        seen: The model as :func:`look_at` found it.
        subject: The model; which terms took part in its training.
        choice: What the user chose.
        classifies: Whether the answers are distributions.
        progress: Called with a score's name and the share done.

    Returns:
        An entry for each score: a value with its controls, or a reason.
    """
    if seen.material is None:
        entries = [missing(Applicable(score, False), str(seen.why_not)) for score in _all_scores()]
        return Further([entry for entry in map(_renamed, entries) if _matches(entry.name, choice.patterns)])
    material, no_layer, why_none = seen.material, None, choice.why_none
    controls: list[Control] = []
    left = choice.left()
    if left > 0:
        overhead = _CONTROLS + _PASSES * _few_seconds(seen.material) * len(material.queries) / _TIMED
        if overhead > left:
            why_none = (
                f"asking it and its controls would take about {overhead:.1f} s, {left:.1f} s of the budget are left"
            )
            left = 0.0
            choice.tell(f"No further scores: {why_none}.")
        else:
            material, no_layer = _with_layer(seen)
            controls = ready_controls(material)
            left = max(0.0, choice.left())
    scores_here = applicable(
        material,
        seen.views,
        seen.inputs,
        no_layer,
        classifies=classifies,
        trained_with=subject.trained_with,
        students=choice.students,
        students_seconds=choice.students_seconds,
        sparsified=subject.sparsified,
        wired=subject.wired,
    )
    chosen = [one for one in scores_here if _matches(one.score.name, choice.patterns)]
    return take(material, chosen, controls, left, why_none, choice.tell, progress)


def page_seconds(seen: Seen) -> float:
    """What drawing the model is estimated to take, with loading what draws if nothing has."""
    fixed = _DRAWING + (0.0 if "networkx" in sys.modules else _LOADING)
    return fixed + (0.0 if seen.material is None else _PICTURES * _few_seconds(seen.material))


def _few_seconds(material: Material) -> float:
    """Seconds of asking the model the first examples."""
    started = time.perf_counter()
    asked(material, material.queries.inputs[:_TIMED])
    return time.perf_counter() - started


def _with_layer(seen: Seen) -> tuple[Material, str | None]:
    """The material with a layer: the user's first tap, else what the last linear layer reads; or why there is none."""
    material = seen.material
    assert material is not None and material.model is not None
    concepts = seen.views.concepts
    if concepts is not None and concepts.ndim == 1:
        concepts = concepts.unsqueeze(-1)
    mask = None if material.queries.mask is None else material.queries.counted
    inputs = material.queries.inputs

    def layer_of(rows: Tensor, concepts: Tensor | None, mask: Tensor | None) -> Layer:
        assert material is not None and material.model is not None
        return Layer.of(material.model, rows, concepts, name=seen.views.tap, forward=material.forward, mask=mask)

    try:
        one = layer_of(inputs[:1], None, None)
        size = one.activations.numel() * len(inputs)
        if size > _MOST_NUMBERS:
            return (
                material,
                f"its activations at all examples are {size:.2g} numbers, at most {_MOST_NUMBERS:.2g} are kept",
            )
        given = None if concepts is None else concepts.long().to(inputs.device)
        return replace(material, layer=layer_of(inputs, given, mask)), None
    except Exception as error:  # noqa: BLE001 - somebody else's model: a layer that can't be recorded is a reason
        return material, f"its layer can't be recorded: {error}"


def score_names() -> list[str]:
    """The names that patterns choose among, as they are in the record."""
    return [NAMES.get(score.name, score.name) for score in _all_scores()]


def _all_scores() -> list[Score]:
    return [*headline_scores([]), *structure_scores(), *further_scores([]), *unread()]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _renamed(entry: ScoreEntry) -> ScoreEntry:
    return replace(entry, name=NAMES.get(entry.name, entry.name))


def _concepts(used: list[Call]) -> Tensor | None:
    found = [call.concepts for call in used if call.concepts is not None]
    return torch.cat(found) if found and len(found) == len(used) else None


def _is_plain(used: list[Call]) -> bool:
    return all(len(call.args) == 1 and isinstance(call.args[0], Tensor) and not call.kwargs for call in used)
