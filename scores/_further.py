"""Scores of one layer and its neighbourhoods, exploratory beside the headlines, ready to be measured together."""

import math
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from legibility.scores._asking import call, evaluating
from legibility.scores._divergence import Rest, answers, information_bits, one_scale
from legibility.scores._gate import if_learnt, why_unlearnt
from legibility.scores._material import Material, Need
from legibility.scores._measure import Reading, Score
from legibility.scores.concepts._monosemanticity import monosemanticity
from legibility.scores.concepts._unit_students import unit_students
from legibility.scores.imitation._held_out import held_out_imitation
from legibility.scores.imitation._patch_through import patch_through_kl
from legibility.scores.imitation._queries import Queries
from legibility.scores.representation._dimension import effective_rank, live_units, participation_ratio
from legibility.scores.representation._explanation_fidelity import explanation_fidelity
from legibility.scores.weights._crosstalk import path_crosstalk
from legibility.scores.weights._spread import activation_l0
from legibility.students import Student, held_out_students, read_signature

_LAYER = "layer"


def further_scores(students: Sequence[Student] | None = None, *, jobs: int | None = None) -> list[Score]:
    """Patch-through and CKA to students, units' readability, selectivity, explanation fidelity, dimension, L0, cross-talk.

    All look at the material's layer but for explanation fidelity and cross-talk. Readability, selectivity and explanation
    fidelity, which untrained models win, have no value for a model that hasn't learnt: it isn't surely better than the commonest
    label or, without labels, its answers carry < .05 bits about the input. Patch-through is a share of what the answers say, at one
    scale of the logits, and fidelity is of the logits, each without its mean over classes: temperature changes neither.

    Lenses, key-value memories, retargetability and difficulty need more than a material holds: see `lens_profile`,
    `key_value_memories`, `retargetability`, `difficulty_slope`.

    Args:
        students: who predicts the layer; None: the held-out ones that suit the input.
        jobs: of them fitted at a time.

    Returns:
        scores for `measure`.

    Example:
        >>> from legibility.scores import further_scores
        >>> [score.name for score in further_scores()][:3]
        ['patch_through', 'student_cka', 'unit_readability']
    """
    last: list[tuple[Material, dict[str, dict[str, float]] | str]] = []

    def predicted(material: Material) -> dict[str, dict[str, float]] | str:
        if not last or last[0][0] is not material:
            last[:] = [(material, _by_students(material, students, jobs))]
        return last[0][1]

    def patched(material: Material) -> Reading:
        return _median(predicted(material), "patch_through")

    def alike(material: Material) -> Reading:
        return _median(predicted(material), "cka")

    # The model too, for answers that were dealt out anew have none, and a layer that isn't theirs.
    layer: frozenset[Need] = frozenset({"layer", "model", "classes"})
    concepts: frozenset[Need] = frozenset({"concepts"})
    model: frozenset[Need] = frozenset({"model"})
    return [
        Score("patch_through", "share", "lower", patched, layer, passes=2, seconds=4.0),
        Score("student_cka", "ratio", None, alike, layer, passes=2, seconds=4.0),
        Score("unit_readability", "share", "higher", if_learnt(_readable), layer, seconds=3.0),
        Score("selectivity", "share", "higher", if_learnt(_selective), concepts, seconds=0.2),
        Score("explanation_error", "share", "lower", if_learnt(_explained), model | {"classes"}, passes=12),
        Score("participation_ratio", "directions", None, _dimension, frozenset({"layer", "model"}), seconds=0.1),
        Score("activation_l0", "share", None, _at_work, frozenset({"layer", "model"}), seconds=0.05),
        Score("path_crosstalk", "share", "lower", _crosstalk, model, passes=1, seconds=0.1, weights_only=True),
    ]


def _median(found: dict[str, dict[str, float]] | str, name: str) -> Reading:
    if isinstance(found, str):
        return Reading(math.nan, found)
    values = {family: each[name] for family, each in found.items() if math.isfinite(each[name])}
    if not values:
        return Reading(math.nan, "no student has a value")
    return Reading(median(values.values()), details=values)


def _by_students(
    material: Material, students: Sequence[Student] | None, jobs: int | None
) -> dict[str, dict[str, float]] | str:
    """By student: what the answers lose when its prediction is put into the layer, and CKA of layer and prediction."""
    layer = material.layer
    assert layer is not None
    if layer.rest is None:
        return "needs the rest of the model behind the layer"
    unlearnt = why_unlearnt(material.queries)
    if unlearnt is not None:
        return unlearnt
    given = material.queries
    every = torch.ones(layer.activations.shape[:-1], dtype=torch.bool, device=layer.activations.device)
    # Answers have a position for each of the layer's, or one for all of them.
    real = _rest(layer.rest, layer.activations, given, every)
    scale = one_scale(real[given.counted])
    # Students weigh answers against the layer: at one scale too, or temperature would shift that weight.
    logits = given.logits / one_scale(given.logits[given.counted])
    queries = Queries(given.inputs, logits, given.labels, given.mask, {_LAYER: layer.activations.float()})
    chosen = held_out_students(read_signature(given.inputs, given.logits)) if students is None else students
    found = held_out_imitation(queries, chosen, jobs=jobs)
    by_student = {}
    for name, family in found.items():
        first = family.first_scored
        if _LAYER not in family.predicted_taps:
            by_student[name] = {"patch_through": math.nan, "cka": math.nan}
            continue
        changed = layer.activations.clone()
        changed[first:] = family.predicted_taps[_LAYER].to(changed)
        said = _rest(layer.rest, changed, given, every)
        keep = given.counted[first:]
        lost = float(patch_through_kl(real[first:] / scale, said[first:] / scale, mask=keep)) / math.log(2)
        known = information_bits(real[first:][keep] / scale)
        by_student[name] = {"patch_through": lost / known, "cka": family.cka.get(_LAYER, math.nan)}
    return by_student


def _rest(rest: Rest, activations: Tensor, queries: Queries, every: Tensor) -> Tensor:
    if queries.logits.shape[:-1] == every.shape:
        return answers(rest, activations, every).view(*every.shape, -1)
    with torch.no_grad():
        return rest(activations)


def _readable(material: Material) -> Reading:
    assert material.layer is not None
    inputs, activations = material.queries.inputs, material.layer.activations
    if not inputs.is_floating_point() or activations.ndim != 2:
        return Reading(math.nan, "units' students read one row of numbers for each example, not tokens or positions")
    keep = material.queries.counted
    found = unit_students(inputs[keep], activations[keep])
    return Reading(found.readability, found.reason or None, details={"permuted": found.permuted_readability})


def _selective(material: Material) -> Reading:
    layer = material.layer
    assert layer is not None and layer.concepts is not None
    found = monosemanticity(layer.activations, layer.concepts, mask=layer.mask)
    details = {"coverage": found.coverage, "completeness": found.completeness, "permuted": found.permuted_selectivity}
    return Reading(found.selectivity, found.reason or None, details=details)


def _explained(material: Material) -> Reading:
    inputs, model = material.queries.inputs, material.model
    assert model is not None
    if not inputs.is_floating_point() or material.queries.logits.ndim != 2:
        return Reading(math.nan, "needs one answer for each row of numbers: tokens have no neighbourhood")
    ask = call if material.forward is None else material.forward

    def logits(rows: Tensor) -> Tensor:
        said = ask(model, rows)
        return said - said.mean(-1, keepdim=True)  # softmax doesn't see it

    with evaluating(model):
        found = explanation_fidelity(inputs, logits)
    details = {"unexplained": found.unexplained, "movement": found.movement}
    return Reading(found.error, found.reason or None, details=details)


def _dimension(material: Material) -> Reading:
    layer = material.layer
    assert layer is not None
    details = {
        "effective_rank": effective_rank(layer.activations, mask=layer.mask),
        "live_units": float(live_units(layer.activations, mask=layer.mask)),
    }
    return Reading(participation_ratio(layer.activations, mask=layer.mask), details=details)


def _at_work(material: Material) -> Reading:
    assert material.layer is not None
    return Reading(activation_l0(material.layer.activations, mask=material.layer.mask))


def _crosstalk(material: Material) -> Reading:
    assert material.model is not None
    found = path_crosstalk(material.model, material.queries.inputs, forward=material.forward)
    details = {"crosstalk": found.crosstalk, "null": found.null, "null_lowest": found.null_lowest}
    if found.crosstalk >= found.null_lowest:
        why = f"no less than when led elsewhere: {found.crosstalk:.4f}, lowest null {found.null_lowest:.4f}"
        return Reading(math.nan, why, details=details | {"value": found.value})
    return Reading(found.value, found.reason or None, details=details)
