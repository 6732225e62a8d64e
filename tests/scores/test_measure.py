"""The machinery: every score beside its controls, within a budget, with a reason where there is none."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores import (
    UNLEARNT,
    ConstantModel,
    ForestEstimator,
    Material,
    Measured,
    NearestEstimator,
    PermutedAnswers,
    Queries,
    RandomInit,
    Reading,
    Score,
    Temperature,
    TreeEstimator,
    default_controls,
    further_scores,
    headline_scores,
    measure,
    structure_scores,
)
from legibility.students import LinearStudent

pytest.importorskip("sklearn")
pytest.importorskip("networkx")


def task() -> tuple[Tensor, Tensor]:
    """How many of two features are above 0, wrong in a third: nobody can be right everywhere."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1600, 6, generator=generator)
    noise = torch.randint(0, 3, (1600,), generator=generator)
    right = (inputs[:, :2] > 0).sum(1)
    return inputs, torch.where(torch.rand(1600, generator=generator) < 0.5, noise, right)


@pytest.fixture(scope="module")
def trained() -> Any:
    inputs, labels = task()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(inputs), labels))
            optimizer.step()
    return model


def scores() -> list[Score]:
    families = [ForestEstimator(10), NearestEstimator(), TreeEstimator()]
    return [*headline_scores(families, permutations=50), *structure_scores(), *further_scores([LinearStudent()])]


def material(model: nn.Module) -> Material:
    inputs, labels = task()
    signs = (inputs[:700, :2] > 0).long()
    asked = Material.ask(model, inputs[:700], labels[:700], concepts=signs, layer="3")
    return replace(asked, shifted=Material.ask(model, inputs[700:] * 1.5, labels[700:]).queries)


@pytest.fixture(scope="module")
def found(trained: Any) -> dict[str, Measured]:
    return {each.name: each for each in measure(material(trained), scores(), default_controls())}


FADING = ("circuit_nodes", "circuit_edges", "used_given_encoded")  # they refuse answers that say next to nothing
SOFT = ("student_cka",)  # no direction: a student that learns flatter answers learns another layer, a little


def test_a_constant_model_never_has_a_value(found: dict[str, Measured]) -> None:
    for name, score in found.items():
        assert math.isnan(score.controls["constant"]), name
        assert score.control_reasons["constant"]


def test_no_control_beats_a_headline(found: dict[str, Measured]) -> None:
    headlines = [score.name for score in headline_scores()]
    assert len(headlines) == 8
    for name in headlines:
        assert math.isfinite(found[name].value), found[name].reason
        assert found[name].beaten_by == (), name


@pytest.mark.parametrize("name", [score.name for score in scores() if score.name not in SOFT])
def test_a_flattened_model_has_the_same_value(found: dict[str, Measured], name: str) -> None:
    own, flat = found[name].value, found[name].controls["temperature 4"]
    if name in FADING and math.isnan(flat):
        assert "constant" in found[name].control_reasons["temperature 4"]
        return
    assert flat == pytest.approx(own, rel=1e-6, abs=1e-9, nan_ok=True)


def test_answers_that_were_dealt_out_anew_arent_compressed(found: dict[str, Measured]) -> None:
    saving = found["imitation_saving"]
    assert saving.control_details["permuted answers"][UNLEARNT] < saving.value - 0.2
    assert found["circuit_nodes"].control_reasons["permuted answers"] == "needs the model itself"
    assert math.isnan(found["error_predictability"].controls["permuted answers"])
    # Labels of concepts are dealt out anew too: no unit tells them.
    assert found["used_given_encoded"].control_reasons["permuted answers"].startswith("no linear probe reads any")
    for name in ("gated_disentanglement", "selectivity"):
        assert "hasn't learnt" in found[name].control_reasons["permuted answers"]
        assert found[name].control_details["permuted answers"][UNLEARNT] < 0.1 < found[name].value


def test_a_rescaled_twin_has_the_same_values(trained: Any, found: dict[str, Measured]) -> None:
    twin = copy.deepcopy(trained)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for first, second in ((twin[0], twin[2]), (twin[2], twin[4])):
            scale = 2.0 ** torch.randint(-5, 6, (len(first.weight),), generator=draw)
            first.weight.mul_(scale[:, None]), first.bias.mul_(scale), second.weight.div_(scale)
    for score in measure(material(twin), scores()):
        expected = found[score.name]
        assert score.value == pytest.approx(expected.value, abs=1e-6, nan_ok=True), score.name
        for detail, value in score.details.items():
            assert value == pytest.approx(expected.details[detail], rel=1e-6, abs=1e-6, nan_ok=True), detail


def test_a_score_that_doesnt_apply_says_why(trained: Any) -> None:
    inputs, _ = task()
    unlabelled = Material.ask(trained, inputs)
    alone = Material(unlabelled.queries)
    found = {each.name: each for each in measure(alone, scores(), [RandomInit(), ConstantModel()])}
    assert found["compressed_size"].reason == "needs true labels and the model itself"
    assert found["error_predictability_shifted"].reason == "needs true labels and shifted data with labels"
    assert found["used_given_encoded"].reason == "needs labels of concepts (`Material.ask(..., concepts=...)`)"
    assert found["participation_ratio"].reason == (
        "needs a layer of the model (`Material.ask(..., layer=...)`) and the model itself"
    )
    assert found["gini"].reason == "needs the model itself" and found["gini"].controls == {}
    assert math.isfinite(found["imitation_saving"].value)
    assert found["imitation_saving"].control_reasons["random-init"] == "needs the model"
    assert "constant" in found["imitation_saving"].control_reasons["constant"]

    def picky(_: Material) -> Reading:
        raise ValueError("`inputs` must be images")

    def endless(_: Material) -> Reading:
        return Reading(math.inf)

    picked, unbounded = measure(alone, [Score("a", "", None, picky), Score("b", "", None, endless)])
    assert picked.reason == "does not apply: `inputs` must be images" and unbounded.reason == "not finite"
    assert math.isnan(picked.value) and math.isnan(unbounded.value)


def test_a_failure_of_the_code_isnt_hidden(trained: Any) -> None:
    def broken(_: Material) -> Reading:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure(material(trained), [Score("a", "", None, broken)])


def test_the_cheapest_comes_first_and_the_budget_holds(trained: Any) -> None:
    order: list[str] = []

    def slow(name: str, seconds: float) -> Callable[[Material], Reading]:
        def take(_: Material) -> Reading:
            order.append(name)
            time.sleep(seconds)
            return Reading(1.0)

        return take

    def cost(seconds: float) -> float:
        return seconds / 0.7  # per 1000 of 700 queries

    listed = [
        Score("long", "", None, slow("long", 0.0), seconds=cost(50.0)),
        Score("short", "", None, slow("short", 0.05), seconds=cost(0.1)),
        Score("middle", "", None, slow("middle", 0.1), seconds=cost(1.0)),
    ]
    said: list[tuple[str, float]] = []
    long, short, middle = measure(
        material(trained), listed, budget=5.0, progress=lambda name, share: said.append((name, share))
    )
    assert order == ["short", "middle"]
    assert (short.value, middle.value) == (1.0, 1.0) and math.isnan(long.value)
    assert long.reason is not None and long.reason.startswith("would take about 50.0 s, 4.")
    assert middle.seconds >= 0.1 and middle.estimate == pytest.approx(1.0)
    assert [name for name, _ in said] == ["short", "middle", "long", ""] and said[-1][1] == 1.0
    # Controls count: each measures once more.
    (short,) = measure(material(trained), listed[1:2], [Temperature(2.0)] * 3, budget=0.3)
    assert short.reason is not None and short.reason.startswith("would take about 0.4 s")


def test_controls_by_hand(trained: Any) -> None:
    model = copy.deepcopy(trained).train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    own = material(model)
    made = {control.name: control.apply(own) for control in default_controls()}
    assert torch.equal(state, torch.random.get_rng_state()) and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    asked = {name: each for name, each in made.items() if isinstance(each, Material)}
    assert set(asked) == {"random-init", "constant", "permuted answers", "temperature 4"}
    assert asked["random-init"].model is not model and asked["random-init"].has("labels")
    assert bool((asked["constant"].queries.logits == asked["constant"].queries.logits[0]).all())
    dealt = asked["permuted answers"].queries
    assert sorted(dealt.logits[:, 0].tolist()) == sorted(own.queries.logits[:, 0].tolist())
    assert dealt.labels is own.queries.labels and dealt.inputs is own.queries.inputs
    flat = asked["temperature 4"]
    assert flat.forward is not None
    torch.testing.assert_close(flat.forward(model.eval(), own.queries.inputs), flat.queries.logits)
    assert RandomInit(1).apply(own).queries.logits.ne(asked["random-init"].queries.logits).any()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="`by` must be a temperature above 0"):
        Temperature(0.0)


def test_permuted_answers_count_only_where_there_was_one() -> None:
    logits = torch.randn(64, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(64, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    logits[~mask] = math.nan
    dealt = PermutedAnswers().apply(Material(Queries(torch.randint(0, 4, (64, 5)), logits, mask=mask)))
    assert isinstance(dealt, Material)
    assert bool(torch.isfinite(dealt.queries.logits[dealt.queries.counted]).all())


def test_beaten_by() -> None:
    beside = {"a": 1.0, "b": 3.0, "c": math.nan}
    assert Measured("s", "", "higher", value=2.0, controls=beside).beaten_by == ("b",)
    assert Measured("s", "", "lower", value=2.0, controls=beside).beaten_by == ("a",)
    assert Measured("s", "", None, value=2.0, controls=beside).beaten_by == ()
    assert Measured("s", "", "lower", controls=beside).beaten_by == ()
    assert Measured("s", "", "lower", value=1.0 + 1e-7, controls=beside).beaten_by == ()  # that is rounding
    unlearnt = {"a": {UNLEARNT: 1.0}, "b": {UNLEARNT: 3.0, "other": 9.0}, "c": {"other": 9.0}}
    assert Measured("s", "", "higher", value=2.0, control_details=unlearnt).doubted_by == ("b",)


def test_an_untrained_model_has_no_headline_however_loud(trained: Any) -> None:
    loud = copy.deepcopy(trained)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for layer in loud[::2]:
            layer.reset_parameters()
        with torch.no_grad():
            loud[4].weight.mul_(60.0)
    ready = ["imitation_saving", "circuit_nodes", "used_given_encoded", "compressed_size", "gated_disentanglement"]
    ready += ["patch_through", "unit_readability", "selectivity", "explanation_error"]
    listed = [each for each in scores() if each.name in ready]
    assert len(listed) == len(ready)
    for each in measure(material(loud), listed):
        assert math.isnan(each.value) and each.reason, each.name
    saving = measure(material(loud), listed[:1])[0]
    assert saving.name == "imitation_saving" and saving.details[UNLEARNT] > 0.05
    assert saving.reason is not None and "it hasn't learnt the task (its value would be" in saving.reason
