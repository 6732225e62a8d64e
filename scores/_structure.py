"""Scores of the shape of weights and decisions, exploratory beside the headlines, ready to be measured together."""

import math

from legibility.scores._material import Material, Need
from legibility.scores._measure import Reading, Score
from legibility.scores.imitation._tree_path import tree_path_length
from legibility.scores.weights._canonical import canonicalise
from legibility.scores.weights._modularity import relative_modularity
from legibility.scores.weights._sparsity import weight_sparsity
from legibility.scores.weights._wiring import wiring_cost

_CHANCE = 3.0  # standard deviations of a null within which a difference from it is no difference


def structure_scores() -> list[Score]:
    """Gini and wiring of canonical weights, relative modularity, tree path length: exploratory, beside the headlines.

    Modularity and wiring that lie within 3 standard deviations of shuffled weights have no value but a reason: there a
    trained network is where an untrained one is.

    Example:
        >>> from legibility.scores import structure_scores
        >>> [score.name for score in structure_scores()]
        ['gini', 'relative_modularity', 'wiring_cost', 'tree_path_length']
    """

    def spread(material: Material) -> Reading:
        assert material.model is not None
        found = weight_sparsity(canonicalise(material.model).weights.items())
        return Reading(found.gini, "every weight is zero" if math.isnan(found.gini) else None)

    def modular(material: Material) -> Reading:
        assert material.model is not None
        found = relative_modularity(material.model, nulls=5)
        details = {"q": found.q, "null": found.q_null, "null_spread": found.q_null_spread}
        if found.q <= found.q_null + _CHANCE * found.q_null_spread:
            why = f"no more clustered than with its weights shuffled: {_beside(found.q, found.q_null, found.q_null_spread)}"
            return Reading(math.nan, why, details=details | {"value": found.value})
        return Reading(found.value, found.reason, details=details)

    def wired(material: Material) -> Reading:
        assert material.model is not None
        found = wiring_cost(material.model)
        details = {"cost": found.cost, "null": found.null, "null_spread": found.null_spread}
        if found.cost >= found.null - _CHANCE * found.null_spread:
            why = f"no shorter than with its weights shuffled: {_beside(found.cost, found.null, found.null_spread)}"
            return Reading(math.nan, why, details=details | {"value": found.value})
        return Reading(found.value, found.reason, details=details)

    def path(material: Material) -> Reading:
        found = tree_path_length(material.queries)
        return Reading(found.value, found.reason, details={"leaves": float(found.leaves), "twin": found.twin})

    model: frozenset[Need] = frozenset({"model"})
    return [
        Score("gini", "ratio", "higher", spread, needs=model, seconds=0.1, weights_only=True),
        Score("relative_modularity", "ratio", "higher", modular, needs=model, seconds=2.0, weights_only=True),
        Score("wiring_cost", "ratio", "lower", wired, needs=model, seconds=0.5, weights_only=True),
        Score("tree_path_length", "questions", "lower", path, seconds=0.2),
    ]


def _beside(value: float, null: float, spread: float) -> str:
    return f"{value:.4f}, null {null:.4f} +- {spread:.4f}"
