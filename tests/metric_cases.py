"""A table of every metric: how it is made, what it is given, and the function that gives the same numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from known_heads import abc_head
from torch import Tensor, nn

from legibility import losses, scores
from legibility.scores import Queries
from legibility.students import LinearStudent


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


HIDDEN, CONCEPTS, REST = abc_head(320)
INPUTS, OTHER = normal(320, 6), normal(320, 3, seed=1)
LOGITS = INPUTS[:, :3] * 4
LABELS = torch.where(torch.arange(320) % 8 == 0, OTHER.argmax(1), INPUTS[:, :3].argmax(1))
MASK = torch.rand(320, generator=torch.Generator().manual_seed(2)) < 0.8
EARLY = HIDDEN + normal(320, 8, seed=3)


def net() -> nn.Sequential:
    """An MLP whose answers are loud."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[4].weight.mul_(20)
    found: nn.Sequential = model
    return found


MODEL = net()


def heads() -> tuple[nn.Module, nn.Module]:
    """Two linear heads."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(8, 3), nn.Linear(8, 3)


REST_NET, RANDOM_NET = heads()


@dataclass(frozen=True)
class Case:
    """A metric, what it is updated with (rows of which batches can be made), and its function on the whole."""

    make: Callable[[], Any]
    batch: Mapping[str, Any]
    function: Callable[..., Any]
    whole: Callable[[], Any]
    names: Mapping[str, str] = field(default_factory=dict)  # the metric's names for the function's attributes
    cut: bool = True  # whether it can be updated in parts
    direction: bool | None = None


def imitation() -> dict[str, float]:
    """Of one family."""
    queries = Queries(INPUTS, LOGITS, LABELS, taps={"tap": INPUTS[:, :2]})
    twin = scores.held_out_twin(queries, [LinearStudent()], passes=1)
    found = scores.held_out_imitation(queries, [LinearStudent()], twin=twin, passes=1)["linear"]
    values = {f"linear/{key}": float(getattr(found, key)) for key in ("kl", "saving", "adjusted_saving", "surplus")}
    return values | {"linear/fvu/tap": found.fvu["tap"], "linear/cka/tap": found.cka["tap"]}


def errors() -> dict[str, float]:
    """Of one family."""
    found = scores.error_predictability(Queries(INPUTS, LOGITS, LABELS), [LinearStudent()], passes=1)["linear"]
    return {"linear/xea": found.value, "linear/kappa": found.kappa, "linear/errors": found.errors}


def dimensions() -> dict[str, float]:
    """All four functions."""
    return {
        "participation_ratio": scores.participation_ratio(HIDDEN),
        "effective_rank": scores.effective_rank(HIDDEN),
        "live_units": scores.live_units(HIDDEN),
        "activation_rms": scores.activation_rms(HIDDEN),
    }


def features() -> dict[str, float]:
    """Of all features."""
    return {"dimensionality": float(scores.feature_dimensionality(HIDDEN[:10]).mean())}


CLASSES = (LOGITS.argmax(-1), LABELS, OTHER.argmax(-1), LABELS.roll(1))
STREAM = {"stream": HIDDEN, "keys": EARLY.relu()}
VALUES, HEAD = torch.eye(8), torch.stack([HIDDEN[1], HIDDEN[2]])
OWN = ("score", "share", "isolation", "excess_use", "information")
DCI = ("score", "disentanglement", "completeness", "informativeness", "permuted_informativeness", "gate")

CASES = {
    "HeldOutImitation": Case(
        lambda: scores.HeldOutImitation([LinearStudent()], taps=["tap"], passes=1),
        {"inputs": INPUTS, "logits": LOGITS, "labels": LABELS, "taps": {"tap": INPUTS[:, :2]}},
        scores.held_out_imitation,
        imitation,
    ),
    "ErrorAgreement": Case(
        lambda: scores.ErrorAgreement(3),
        dict(zip(("primary", "labels", "student", "twin"), CLASSES, strict=True)),
        scores.error_agreement,
        lambda: scores.error_agreement(*CLASSES),
        {"xea": "value", "kappa": "kappa", "accuracy": "accuracy", "errors": "errors"},
        direction=True,
    ),
    "PredictableErrors": Case(
        lambda: scores.PredictableErrors([LinearStudent()], passes=1),
        {"inputs": INPUTS, "logits": LOGITS, "labels": LABELS},
        scores.error_predictability,
        errors,
        direction=True,
    ),
    "PatchThroughKL": Case(
        scores.PatchThroughKL,
        {"logits": LOGITS, "patched_logits": OTHER, "mask": MASK},
        scores.patch_through_kl,
        lambda: scores.patch_through_kl(LOGITS, OTHER, mask=MASK),
        direction=False,
    ),
    "TreePathLength": Case(
        lambda: scores.TreePathLength(fidelity=0.6),
        {"inputs": INPUTS, "logits": LOGITS, "labels": LABELS},
        scores.tree_path_length,
        lambda: scores.tree_path_length(Queries(INPUTS, LOGITS, LABELS), fidelity=0.6),
        {"length": "value", "leaves": "leaves", "agreement": "agreement", "twin": "twin"},
        direction=False,
    ),
    "FaithfulCircuit": Case(
        lambda: scores.FaithfulCircuit(MODEL, learned_steps=10),
        {"inputs": INPUTS},
        scores.faithful_circuit,
        lambda: scores.faithful_circuit(MODEL, INPUTS, learned_steps=10),
        {name: name for name in ("size_90", "size_99", "learned_90", "area", "count_90", "stability", "divergence")},
    ),
    "CompressedSizeOfModel": Case(
        lambda: scores.CompressedSizeOfModel(MODEL, tolerance=0.3),
        {"inputs": INPUTS, "labels": MODEL(INPUTS).argmax(-1)},
        scores.compressed_size,
        lambda: scores.compressed_size(MODEL, INPUTS, MODEL(INPUTS).argmax(-1), tolerance=0.3),
        {name: name for name in ("bits", "share", "kept", "bits_per_weight", "rise", "bound")},
        direction=False,
    ),
    "UsedGivenEncoded": Case(
        lambda: scores.UsedGivenEncoded(REST, permutations=20),
        {"activations": HIDDEN, "concepts": CONCEPTS},
        scores.used_given_encoded,
        lambda: scores.used_given_encoded(HIDDEN, CONCEPTS, REST, permutations=20),
        {name: name for name in OWN},
        direction=True,
    ),
    "GatedDisentanglement": Case(
        lambda: scores.GatedDisentanglement(permutations=1),
        {"activations": HIDDEN, "concepts": CONCEPTS},
        scores.gated_disentanglement,
        lambda: scores.gated_disentanglement(HIDDEN, CONCEPTS, permutations=1),
        {name: name for name in DCI},
        direction=True,
    ),
    "MonosemanticUnits": Case(
        scores.MonosemanticUnits,
        {"activations": HIDDEN, "concepts": CONCEPTS, "mask": MASK},
        scores.monosemanticity,
        lambda: scores.monosemanticity(HIDDEN, CONCEPTS, mask=MASK),
        {name: name for name in ("selectivity", "permuted_selectivity", "coverage", "completeness", "live")},
        direction=True,
    ),
    "UnitStudents": Case(
        lambda: scores.UnitStudents(steps=5),
        {"inputs": EARLY, "activations": HIDDEN},
        scores.unit_students,
        lambda: scores.unit_students(EARLY, HIDDEN, steps=5),
        {name: name for name in ("readability", "permuted_readability")},
    ),
    "Dimension": Case(lambda: scores.Dimension(8), {"activations": HIDDEN}, scores.participation_ratio, dimensions),
    "LinearCKA": Case(
        lambda: scores.LinearCKA(8, 8),
        {"x": HIDDEN, "y": EARLY, "mask": MASK},
        scores.linear_cka,
        lambda: scores.linear_cka(HIDDEN, EARLY, mask=MASK),
    ),
    "FractionOfVarianceUnexplained": Case(
        lambda: scores.FractionOfVarianceUnexplained(8),
        {"primary": HIDDEN, "student": EARLY},
        losses.fraction_of_variance_unexplained,
        lambda: losses.fraction_of_variance_unexplained(HIDDEN.double(), EARLY.double()).mean(),
        direction=False,
    ),
    "LensGap": Case(
        lambda: scores.LensGap(REST, layers=["early", "late"]),
        {"layers": {"early": EARLY, "late": HIDDEN}, "logits": REST(HIDDEN)},
        scores.lens_profile,
        lambda: scores.lens_profile({"early": EARLY, "late": HIDDEN}, REST, REST(HIDDEN)),
        {"gap": "gap", "information": "information"},
        direction=False,
    ),
    "KeyValueMemories": Case(
        lambda: scores.KeyValueMemories(VALUES, HEAD, REST, memories=3),
        STREAM,
        scores.key_value_memories,
        lambda: scores.key_value_memories(HIDDEN, EARLY.relu(), VALUES, HEAD, REST, memories=3),
        {name: name for name in ("agreement", "permuted_agreement", "success", "side_effects", "specificity")},
    ),
    "Retargetability": Case(
        lambda: scores.Retargetability(REST_NET, RANDOM_NET, passes=1),
        {"activations": HIDDEN, "goal": CONCEPTS[:, 0], "random_activations": EARLY},
        scores.retargetability,
        lambda: scores.retargetability(HIDDEN, CONCEPTS[:, 0], REST_NET, EARLY, RANDOM_NET, passes=1),
        {name: name for name in ("frozen", "random", "full", "null")},
        direction=True,
    ),
    "DifficultySlope": Case(
        scores.DifficultySlope,
        {"loss": HIDDEN[:, 0], "difficulty": EARLY[:, 0].exp()},
        scores.difficulty_slope,
        lambda: scores.difficulty_slope(HIDDEN[:, 0], EARLY[:, 0].exp()),
        {"slope": "slope", "standard_error": "standard_error"},
    ),
    "LocalFidelity": Case(
        lambda: scores.LocalFidelity(lambda x: MODEL(x).sin(), points=4),
        {"inputs": INPUTS},
        scores.explanation_fidelity,
        lambda: scores.explanation_fidelity(INPUTS, lambda x: MODEL(x).sin(), points=4),
        {name: name for name in ("error", "unexplained", "movement")},
    ),
    "FeatureDimensionality": Case(
        scores.FeatureDimensionality,
        {"weight": HIDDEN[:10]},
        scores.feature_dimensionality,
        features,
        cut=False,
        direction=True,
    ),
    "WeightSparsity": Case(
        scores.WeightSparsity,
        {"named_weights": [("weight", HIDDEN.relu())]},
        scores.weight_sparsity,
        lambda: scores.weight_sparsity([("weight", HIDDEN.relu())]),
        {name: name for name in ("zeros", "active", "gini", "dead_units", "hoyer")},
        cut=False,
    ),
    "ActivationL0": Case(
        lambda: scores.ActivationL0(threshold=0.5),
        {"activations": HIDDEN.relu(), "mask": MASK},
        scores.activation_l0,
        lambda: scores.activation_l0(HIDDEN.relu(), mask=MASK, threshold=0.5),
    ),
    "RelativeModularity": Case(
        scores.RelativeModularity,
        {"model": MODEL},
        scores.relative_modularity,
        lambda: scores.relative_modularity(MODEL),
        {name: name for name in ("value", "q", "q_null", "q_null_spread")},
        cut=False,
        direction=True,
    ),
    "RelativeWiringCost": Case(
        scores.RelativeWiringCost,
        {"model": MODEL},
        scores.wiring_cost,
        lambda: scores.wiring_cost(MODEL),
        {name: name for name in ("value", "cost", "null", "null_spread", "as_given")},
        cut=False,
        direction=False,
    ),
    "CrosstalkOfPaths": Case(
        lambda: scores.CrosstalkOfPaths(MODEL),
        {"inputs": INPUTS},
        scores.path_crosstalk,
        lambda: scores.path_crosstalk(MODEL, INPUTS),
        {name: name for name in ("value", "crosstalk", "null", "null_lowest", "unit_activity")},
        direction=False,
    ),
}


def rows_of(given: Any, rows: slice) -> Any:
    """Some rows of everything that is given."""
    if isinstance(given, Mapping):
        return {name: rows_of(each, rows) for name, each in given.items()}
    return given[rows]


def tokens() -> dict[str, Any]:
    """Their sums so far, modulo 3, where they aren't 0."""
    ids = torch.randint(0, 3, (320, 6), generator=torch.Generator().manual_seed(4))
    logits = nn.functional.one_hot(ids.cumsum(1) % 3, 3) * 4.0
    return {"inputs": ids, "logits": logits, "labels": ids, "mask": ids > 0}


ESTIMATORS = (scores.ForestEstimator(5), scores.NearestEstimator())
ON_RANKS = CASES | {
    "HeldOutImitation of tokens": Case(
        lambda: scores.HeldOutImitation(ESTIMATORS),
        tokens(),
        scores.held_out_imitation,
        lambda: scores.held_out_imitation(Queries(**tokens()), ESTIMATORS),
    ),
}
"""Those, and what estimators make of tokens."""
