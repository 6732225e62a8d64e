"""The headline scores H1 to H6, ready to be measured together."""

import math
from collections.abc import Callable, Mapping, Sequence

from legibility.scores._gate import if_learnt
from legibility.scores._material import Material, Need
from legibility.scores._measure import Direction, Reading, Score
from legibility.scores.circuits._circuit import CIRCUIT_PROTOCOL, faithful_circuit
from legibility.scores.circuits._masked import Granularity
from legibility.scores.concepts._disentanglement import PROTOCOL as DISENTANGLEMENT_PROTOCOL
from legibility.scores.concepts._disentanglement import gated_disentanglement
from legibility.scores.concepts._used_given_encoded import PROTOCOL as USE_PROTOCOL
from legibility.scores.concepts._used_given_encoded import used_given_encoded
from legibility.scores.imitation._errors import ErrorPredictability
from legibility.scores.imitation._estimators import default_estimators
from legibility.scores.imitation._families import Family
from legibility.scores.imitation._family_imitation import PROTOCOL
from legibility.scores.imitation._held_out import held_out_imitation, held_out_twin
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._rows import why_unread
from legibility.scores.imitation._saving import imitation_saving, transfer_ratio
from legibility.scores.imitation._watching import error_predictability
from legibility.scores.weights._compressed import COMPRESSION_PROTOCOL, compressed_size
from legibility.students import held_out_students, read_signature


def headline_scores(
    families: Sequence[Family] | None = None,
    *,
    tolerance: float = 0.01,
    trained_with: Sequence[Family] = (),
    permutations: int = 50,
    jobs: int | None = None,
) -> list[Score]:
    """Imitation saving, error predictability (iid, shifted), circuit size, used-given-encoded, compressed size, DCI.

    Args:
        families: the held-out families; None: all estimators and students that suit the input. Give those that took no
            part in training.
        tolerance: of the compressed size: nats, or for a regression a share of the targets' variance.
        trained_with: architectures that took part in training: with them imitation saving tells the transfer ratio.
        permutations: of the null of used-given-encoded.
        jobs: families fitted at a time, see `held_out_imitation`.

    Returns:
        scores for `measure`. None has a value for a model that hasn't learnt: with labels, one that isn't surely better than
        the commonest of them; without, one whose answers carry < .05 bits. An untrained model is easy to imitate and small
        for nothing. What it would have stays in the reason, and `Measured.doubted_by` tells where that is better.

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
            twins[key] = queries, held_out_twin(queries, [*asked, *trained_with], jobs=jobs)
        return twins[key][1]

    def saving(material: Material) -> Reading:
        queries, asked = material.queries, chosen(material.queries)
        twin = twin_of(queries, asked)
        by_family = held_out_imitation(queries, [*asked, *trained_with], twin=twin, jobs=jobs)
        held_out = dict(list(by_family.items())[: len(asked)])
        found = imitation_saving(held_out)
        details = {
            "best": found.best,
            "plain_median": found.plain_median,
            "plain_best": found.plain_best,
            "families": float(found.families),
        }
        if trained_with:
            partners = {name: family for name, family in by_family.items() if name not in held_out}
            details["transfer_ratio"] = transfer_ratio(held_out, partners)
        return Reading(found.median, found.reason, details=details)

    def errors(material: Material) -> Reading:
        return _errors(error_predictability(material.queries, chosen(material.queries), jobs=jobs))

    def shifted(material: Material) -> Reading:
        queries = material.queries
        return _errors(error_predictability(queries, chosen(queries), shifted=material.shifted, jobs=jobs))

    def compressed(material: Material) -> Reading:
        queries, targets = material.queries, material.targets
        true = queries.labels if targets is None else targets
        assert material.model is not None and true is not None
        unit = 1.0 if targets is None else float(targets.double().var(correction=0))
        found = compressed_size(
            material.model,
            queries.inputs,
            true,
            tolerance=tolerance * unit,
            forward=material.forward,
            mask=None if queries.mask is None else queries.counted,
        )
        details = {"bits": found.bits, "kept": found.kept, "bits_per_weight": found.bits_per_weight}
        return Reading(found.share, found.reason, details=details)

    def used(material: Material) -> Reading:
        layer = material.layer
        assert layer is not None and layer.concepts is not None
        if layer.rest is None:
            return Reading(math.nan, "needs the rest of the model behind the layer")
        found = used_given_encoded(
            layer.activations, layer.concepts, layer.rest, mask=layer.mask, permutations=permutations
        )
        names = ("share", "witnessed_share", "isolation", "excess_use", "information")
        return Reading(found.score, found.reason or None, details={name: getattr(found, name) for name in names})

    labels: frozenset[Need] = frozenset({"labels", "classes"})
    model: frozenset[Need] = frozenset({"model"})
    classes: frozenset[Need] = frozenset({"model", "classes"})
    concepts: frozenset[Need] = frozenset({"concepts"})
    share = "share"
    up: Direction = "higher"
    down: Direction = "lower"
    return [
        Score("imitation_saving", share, up, if_learnt(saving), seconds=2.5, version=PROTOCOL),
        Score("error_predictability", share, up, errors, needs=labels, seconds=4.0),
        Score("error_predictability_shifted", share, up, shifted, needs=labels | {"shifted"}, seconds=2.0),
        Score("circuit_nodes", share, down, if_learnt(_circuit("nodes")), classes, passes=800, version=CIRCUIT_PROTOCOL),
        Score("circuit_edges", share, down, if_learnt(_circuit("edges")), classes, passes=800, version=CIRCUIT_PROTOCOL),
        Score(
            "used_given_encoded", share, up, if_learnt(used), concepts,
            passes=2.0 * (1 + permutations), seconds=0.5, version=USE_PROTOCOL, times=_concepts,
        ),
        Score(
            "compressed_size", share, down, compressed, model | {"labels"}, passes=120, version=COMPRESSION_PROTOCOL
        ),
        Score(
            "gated_disentanglement", share, up, if_learnt(_disentangled), concepts,
            seconds=0.5, version=DISENTANGLEMENT_PROTOCOL, times=_concepts,
        ),
    ]  # fmt: skip


def _concepts(material: Material) -> float:
    """How many there are."""
    assert material.layer is not None and material.layer.concepts is not None
    return float(material.layer.concepts.shape[-1])


def _disentangled(material: Material) -> Reading:
    layer = material.layer
    assert layer is not None and layer.concepts is not None
    found = gated_disentanglement(layer.activations, layer.concepts, mask=layer.mask)
    names = ("disentanglement", "completeness", "informativeness", "permuted_informativeness", "gate")
    return Reading(found.score, found.reason or None, details={name: getattr(found, name) for name in names})


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
