"""The scores of imitation, circuits and weights, ready to be measured together."""

import math
from collections.abc import Callable, Mapping, Sequence

from legibility.scores._material import Material, Need
from legibility.scores._measure import Reading, Score
from legibility.scores.circuits._circuit import CIRCUIT_PROTOCOL, faithful_circuit
from legibility.scores.circuits._masked import Granularity
from legibility.scores.imitation._errors import ErrorPredictability
from legibility.scores.imitation._estimators import default_estimators
from legibility.scores.imitation._families import Family
from legibility.scores.imitation._family_imitation import PROTOCOL
from legibility.scores.imitation._held_out import held_out_imitation, held_out_twin
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._refitted import why_unread
from legibility.scores.imitation._saving import imitation_saving
from legibility.scores.imitation._tree_path import tree_path_length
from legibility.scores.imitation._watching import error_predictability
from legibility.scores.weights._canonical import canonicalise
from legibility.scores.weights._compressed import COMPRESSION_PROTOCOL, compressed_size
from legibility.scores.weights._modularity import relative_modularity
from legibility.scores.weights._sparsity import weight_sparsity
from legibility.scores.weights._wiring import wiring_cost
from legibility.students import held_out_students, read_signature


def headline_scores(families: Sequence[Family] | None = None, *, tolerance: float = 0.01) -> list[Score]:
    """Imitation saving, error predictability (iid and shifted), circuit size, compressed size.

    Args:
        families: the held-out families; None: all estimators and students that suit the input. Give those that took no
            part in training.
        tolerance: of the compressed size, nats.

    Returns:
        scores for `measure`.

    Example:
        >>> from legibility.scores import headline_scores
        >>> [score.name for score in headline_scores()][:3]
        ['imitation_saving', 'error_predictability', 'error_predictability_shifted']
    """

    def chosen(queries: Queries) -> list[Family]:
        return families_for(queries) if families is None else list(families)

    # Twins depend on inputs and labels alone, which controls share: with the tensors, so that no identity is used again.
    twins: dict[tuple[int, int], tuple[Queries, dict[str, float]]] = {}

    def twin_of(queries: Queries, asked: list[Family]) -> dict[str, float] | None:
        if queries.labels is None:
            return None
        key = id(queries.inputs), id(queries.labels)
        if key not in twins:
            twins.clear()
            twins[key] = queries, held_out_twin(queries, asked)
        return twins[key][1]

    def saving(material: Material) -> Reading:
        queries, asked = material.queries, chosen(material.queries)
        twin = twin_of(queries, asked)
        found = imitation_saving(held_out_imitation(queries, asked, twin=twin))
        details = {
            "best": found.best,
            "plain_median": found.plain_median,
            "plain_best": found.plain_best,
            "families": float(found.families),
        }
        return Reading(found.median, found.reason, details=details)

    def errors(material: Material) -> Reading:
        return _errors(error_predictability(material.queries, chosen(material.queries)))

    def shifted(material: Material) -> Reading:
        queries = material.queries
        return _errors(error_predictability(queries, chosen(queries), shifted=material.shifted))

    def compressed(material: Material) -> Reading:
        queries = material.queries
        assert material.model is not None and queries.labels is not None
        found = compressed_size(
            material.model,
            queries.inputs,
            queries.labels,
            tolerance=tolerance,
            forward=material.forward,
            mask=None if queries.mask is None else queries.counted,
        )
        details = {"bits": found.bits, "kept": found.kept, "bits_per_weight": found.bits_per_weight}
        return Reading(found.share, found.reason, details=details)

    labels: frozenset[Need] = frozenset({"labels"})
    model: frozenset[Need] = frozenset({"model"})
    return [
        Score("imitation_saving", "share", "higher", saving, seconds=2.5, version=PROTOCOL),
        Score("error_predictability", "share", "higher", errors, needs=labels, seconds=4.0),
        Score("error_predictability_shifted", "share", "higher", shifted, needs=labels | {"shifted"}, seconds=2.0),
        Score("circuit_nodes", "share", "lower", _circuit("nodes"), model, passes=800, version=CIRCUIT_PROTOCOL),
        Score("circuit_edges", "share", "lower", _circuit("edges"), model, passes=800, version=CIRCUIT_PROTOCOL),
        Score(
            "compressed_size", "share", "lower", compressed, model | labels, passes=120, version=COMPRESSION_PROTOCOL
        ),
    ]


def structure_scores() -> list[Score]:
    """Gini and wiring of canonical weights, relative modularity, tree path length: exploratory, beside the headlines.

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
        found = relative_modularity(material.model)
        return Reading(found.value, found.reason, details={"q": found.q, "null": found.q_null})

    def wired(material: Material) -> Reading:
        assert material.model is not None
        found = wiring_cost(material.model)
        return Reading(found.value, found.reason, details={"cost": found.cost, "null": found.null})

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


def families_for(queries: Queries) -> list[Family]:
    """Estimators, where they can read the input, and the held-out students that suit it.

    Example:
        >>> import torch
        >>> from legibility.scores import Queries, families_for
        >>> [family.name for family in families_for(Queries(torch.randn(64, 5), torch.randn(64, 3)))][:4]
        ['forest', 'nearest', 'kernel', 'tree']
    """
    students = held_out_students(read_signature(queries.inputs, queries.logits))
    return [*(default_estimators() if why_unread(queries) is None else []), *students]


def _circuit(granularity: Granularity) -> Callable[[Material], Reading]:
    def size(material: Material) -> Reading:
        assert material.model is not None
        queries = material.queries
        found = faithful_circuit(
            material.model,
            queries.inputs,
            granularity=granularity,
            forward=material.forward,
            mask=None if queries.mask is None else queries.counted,
        )
        names = ("size_99", "learned_90", "learned_99", "area", "count_90", "stability", "divergence")
        details = {name: float(getattr(found, name)) for name in names}
        return Reading(found.size_90, found.reason, details=details, findings=found)

    return size


def _errors(found: Mapping[str, ErrorPredictability]) -> Reading:
    """The median family's."""
    values = {name: each for name, each in found.items() if math.isfinite(each.value)}
    if not values:
        return Reading(math.nan, next(iter(found.values())).reason)
    ordered = sorted(values.values(), key=lambda each: each.value)
    middle = ordered[(len(ordered) - 1) // 2]
    details = {"best": ordered[-1].value, "errors": float(middle.errors), "kappa": middle.kappa}
    return Reading(middle.value, interval=middle.interval, details=details)
