"""Every score is a metric with a pure function, a card, and a picture: a table of all of them, which must be complete."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from known_heads import abc_head
from torch import Tensor, nn
from torchmetrics import Metric

from legibility import losses, scores
from legibility.scores import Queries
from legibility.students import LinearStudent

pytest.importorskip("sklearn")
pytest.importorskip("networkx")

CARD = ("Range and direction:", "Cost:", "Gamed by:")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


HIDDEN, CONCEPTS, REST = abc_head(320)
INPUTS, OTHER = normal(320, 6), normal(320, 3, seed=1)
LOGITS = INPUTS[:, :3] * 4
LABELS = torch.where(torch.arange(320) % 8 == 0, OTHER.argmax(1), INPUTS[:, :3].argmax(1))
MASK = torch.rand(320, generator=torch.Generator().manual_seed(2)) < 0.8
EARLY = HIDDEN + normal(320, 8, seed=3)


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[4].weight.mul_(20)
    return model


MODEL = net()


def heads() -> tuple[nn.Module, nn.Module]:
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


def attribute(found: Any, name: str) -> float:
    if isinstance(found, (float, int)):
        return float(found)
    if isinstance(found, Tensor):
        return float(found)
    return float(found[name] if isinstance(found, Mapping) else getattr(found, name))


def family(name: str) -> Callable[[], dict[str, float]]:
    def whole() -> dict[str, float]:
        queries = Queries(INPUTS, LOGITS, LABELS, taps={"tap": INPUTS[:, :2]})
        twin = scores.held_out_twin(queries, [LinearStudent()], passes=1)
        found = scores.held_out_imitation(queries, [LinearStudent()], twin=twin, passes=1)[name]
        values = {f"{name}/{key}": float(getattr(found, key)) for key in ("kl", "saving", "adjusted_saving", "surplus")}
        return values | {f"{name}/fvu/tap": found.fvu["tap"], f"{name}/cka/tap": found.cka["tap"]}

    return whole


def errors() -> dict[str, float]:
    found = scores.error_predictability(Queries(INPUTS, LOGITS, LABELS), [LinearStudent()], passes=1)["linear"]
    return {"linear/xea": found.value, "linear/kappa": found.kappa, "linear/errors": found.errors}


def dimensions() -> dict[str, float]:
    return {
        "participation_ratio": scores.participation_ratio(HIDDEN),
        "effective_rank": scores.effective_rank(HIDDEN),
        "live_units": scores.live_units(HIDDEN),
        "activation_rms": scores.activation_rms(HIDDEN),
    }


def features() -> dict[str, float]:
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
        family("linear"),
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


def all_metrics() -> set[str]:
    public = ((name, getattr(scores, name)) for name in scores.__all__)
    return {name for name, each in public if inspect.isclass(each) and issubclass(each, Metric)}


def rows_of(given: Any, rows: slice) -> Any:
    if isinstance(given, Mapping):
        return {name: rows_of(each, rows) for name, each in given.items()}
    return given[rows]


@pytest.fixture(scope="module")
def computed() -> dict[str, Any]:
    found = {}
    for name, case in CASES.items():
        metric = case.make()
        parts = [slice(0, 100), slice(100, 101), slice(101, 320)] if case.cut else [None]
        for part in parts:
            metric.update(**(case.batch if part is None else rows_of(case.batch, part)))
        found[name] = (metric, metric.compute())
    return found


def test_the_table_is_complete() -> None:
    assert set(CASES) == all_metrics()


@pytest.mark.parametrize("name", CASES)
def test_metric_in_parts_equals_the_function(name: str, computed: dict[str, Any]) -> None:
    case, (_, value) = CASES[name], computed[name]
    whole = case.whole()
    if not isinstance(value, dict):
        assert float(value) == pytest.approx(float(whole), rel=1e-9, abs=1e-12)
        return
    assert all(entry.dtype == torch.float64 and entry.ndim == 0 for entry in value.values())
    names = case.names or {key: key for key in whole}
    compared = {key: (float(value[key]), attribute(whole, of)) for key, of in names.items()}
    assert any(math.isfinite(own) for own, _ in compared.values())
    for key, (own, expected) in compared.items():
        assert own == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True), key


@pytest.mark.parametrize("name", CASES)
def test_flags(name: str, computed: dict[str, Any]) -> None:
    metric = computed[name][0]
    assert metric.higher_is_better is CASES[name].direction
    assert metric.is_differentiable is False and metric.full_state_update is False
    # None of the model's weights is a part of the metric's state.
    assert not list(metric.parameters()) and not metric.state_dict()


@pytest.mark.parametrize("name", CASES)
def test_states_are_sums_in_float64_or_gathered_examples(name: str) -> None:
    metric = CASES[name].make()
    for state, default in metric._defaults.items():
        reduce = metric._reductions[state]
        if isinstance(default, list):
            assert getattr(reduce, "__name__", "") == "dim_zero_cat", state
        else:
            assert default.dtype == torch.float64, state
            # The first rank's, for weights, which are equal on all ranks: never summed.
            weights = name in ("WeightSparsity", "FeatureDimensionality", "RelativeModularity", "RelativeWiringCost")
            assert getattr(reduce, "__name__", "") == ("_of_first_rank" if weights else "dim_zero_sum"), state


@pytest.mark.parametrize("name", CASES)
def test_card(name: str) -> None:
    case = CASES[name]
    of_class = inspect.getdoc(getattr(scores, name)) or ""
    of_function = inspect.getdoc(case.function) or ""
    card = of_class if name == "FractionOfVarianceUnexplained" else of_function
    assert "Card:" in card
    body = card.split("Card:", 1)[1].split("\nArgs:", 1)[0]
    for section in CARD:
        assert section in body, section
    assert re.search(r"Controls?:", body), "a control"
    assert re.search(r"rained on", body), "whether it is trained on"
    assert re.search(r"higher|lower|up\b|down\b|[Nn]o(ne)? .*(direction|better)|no direction|none is better", body)
    assert "Source:" in card
    assert case.function.__name__ in of_class or "Card:" in of_class, "the class must name its function"
    assert ">>>" in of_class and ">>>" in of_function


@pytest.mark.parametrize("name", CASES)
def test_function_is_pure(name: str) -> None:
    state, before = torch.random.get_rng_state(), [p.detach().clone() for p in MODEL.parameters()]
    first, again = CASES[name].whole(), CASES[name].whole()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, MODEL.parameters(), strict=True))
    if dataclasses.is_dataclass(first):
        for each in dataclasses.fields(first):
            one, other = getattr(first, each.name), getattr(again, each.name)
            if isinstance(one, float):
                assert one == pytest.approx(other, rel=1e-12, nan_ok=True), each.name


def test_every_metric_draws_itself(computed: dict[str, Any]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    for metric, value in computed.values():
        figure, _ = metric.plot()
        assert figure.get_axes()
        figure, _ = metric.plot([value, value])
        assert figure.get_axes()
        matplotlib.pyplot.close("all")
