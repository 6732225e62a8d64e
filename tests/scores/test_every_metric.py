"""Every score is a metric with a pure function, a card, and a picture: of a table of all of them, which must be complete."""

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from metric_cases import CASES, MODEL, rows_of
from torch import Tensor
from torchmetrics import Metric

from legibility import scores

pytest.importorskip("sklearn")
pytest.importorskip("networkx")

CARD = ("Range and direction:", "Cost:", "Gamed by:")


def attribute(found: Any, name: str) -> float:
    if isinstance(found, (float, int, Tensor)):
        return float(found)
    return float(found[name] if isinstance(found, Mapping) else getattr(found, name))


def numbers(found: Any) -> dict[str, Tensor]:
    if dataclasses.is_dataclass(found):
        found = {each.name: getattr(found, each.name) for each in dataclasses.fields(found)}
    values = found if isinstance(found, Mapping) else {"value": found}
    numeric = {name: value for name, value in values.items() if isinstance(value, (float, int, Tensor))}
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in numeric.items()}


def all_metrics() -> set[str]:
    public = ((name, getattr(scores, name)) for name in scores.__all__)
    return {name for name, each in public if inspect.isclass(each) and issubclass(each, Metric)}


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
            assert getattr(reduce, "__name__", "") == ("of_first_rank" if weights else "dim_zero_sum"), state


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
    one, other = numbers(first), numbers(again)
    assert one
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0, equal_nan=True)


def test_every_metric_draws_itself(computed: dict[str, Any]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    for metric, value in computed.values():
        figure, _ = metric.plot()
        assert figure.get_axes()
        figure, _ = metric.plot([value, value])
        assert figure.get_axes()
        matplotlib.pyplot.close("all")
