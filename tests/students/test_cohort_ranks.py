"""Two gloo processes with half a batch each against one process with the whole."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


def _scenarios() -> ModuleType:
    spec = importlib.util.spec_from_file_location("students_ranks", Path(__file__).with_name("ranks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


one = _scenarios()


def _close(a: dict[str, Any], b: dict[str, Any], tolerance: float) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    for name, weight in a["weights"].items():
        difference = (weight - b["weights"][name]).abs().max().item()
        assert difference <= tolerance, name


@pytest.mark.parametrize("scenario", list(one.SCENARIOS))
def test_two_halves_equal_the_whole(scenario: str, ranks: dict[str, list[Any]]) -> None:
    first, second = ranks[scenario]
    _close(first, second, 0.0)
    whole = one.train(None, **one.SCENARIOS[scenario])
    # Sums in another order differ by rounding, which Adam enlarges where a gradient is nearly zero; one step is 3e-3.
    _close(first, whole, 1e-6 if scenario == "output" else 5e-6)
    for found in (first, second):
        assert found["failed"].keys() == whole["failed"].keys()
        assert found["active"] == whole["active"]
        assert found["baseline"] == pytest.approx(whole["baseline"], rel=1e-5)


def test_scenarios_are_what_they_claim(ranks: dict[str, list[Any]]) -> None:
    assert ranks["drop"][0]["failed"] == {"conv": "its gradient became nan"}
    assert ranks["taps"][0]["failed"] == ranks["bad"][0]["failed"] == {}
    for scenario in ("bad", "idle"):
        name = "gru/head.linear.weight"
        assert not torch.equal(ranks[scenario][0]["weights"][name], ranks["taps"][0]["weights"][name])
    for name, weight in ranks["taps"][0]["weights"].items():
        assert torch.equal(weight, ranks["early"][0]["weights"][name])


def test_all_ranks_raise_together(ranks: dict[str, list[Any]]) -> None:
    assert ranks["raise"][0] == ranks["raise"][1]
    assert ranks["raise"][0].startswith("A student failed (`conv`: its gradient became nan)")


def test_ranks_must_be_given_the_same(ranks: dict[str, list[Any]]) -> None:
    for message in ranks["disagree"]:
        assert "must be the same on every rank" in message
        assert "`vocabulary`" in message


def test_ranks_may_see_other_numbers_of_positions(ranks: dict[str, list[Any]]) -> None:
    for found in ranks["longer"]:
        _close(found, ranks["taps"][0], 0.0)


def test_no_memory_on_one_rank_drops_the_student_on_both(ranks: dict[str, list[Any]]) -> None:
    first, second = ranks["unlucky"]
    assert first["living"] == second["living"] == ["conv", "gru", "mlp"]
    assert first["failed"] == {"unlucky": "out of memory when built on another rank"}
    assert second["failed"] == {"unlucky": "out of memory when built: MemoryError"}


def test_a_cohort_of_one_rank_speaks_to_nobody(ranks: dict[str, list[Any]]) -> None:
    alone = one.train(0, distributed=False)
    _close(ranks["by_itself"][0], alone, 0.0)
    _close(ranks["alone"][0], alone, 0.0)
    with pytest.raises(AssertionError):
        _close(ranks["alone"][0], ranks["alone"][1], 1e-3)
