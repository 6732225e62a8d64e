"""Reports on two ranks of FSDP1 are those of one process, whatever is wrapped, and nobody waits for a rank that fails."""

from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Launched
from two_reports import FITS, fit

PROGRAM = Path(__file__).parents[2] / "two_reports.py"
FILES = ["model.html", "picture.json.gz", "record.json"]
EQUAL = ["one vector", "blocks", "by hand", "words", "deeper"]
FURTHER = [
    *(
        "layers",
        "gathered until the backward",
        "whole on each rank",
        "checkpointed",
        "without names",
        "words, one vector",
    ),
    *("itself", "found"),
]
FAIL = ["fails", "fails while weights are whole"]
SELDOM_FAIL = ["fails early", "fails before an untrained model", "fails, FSDP2"]
QUICK = [*EQUAL, "bare", "default", "time on rank 0", *FAIL]
SPREAD = "the weights are spread over ranks"


def launch(name: str) -> tuple[str, list[str]]:
    """One for the quick ones, one for the others."""
    if FITS[name].fsdp2 and torch.__version__ < "2.6":
        pytest.skip("before torch 2.6, FSDP2 does not run on a CPU: it needs CUDA's streams")
    quick = name in QUICK
    names = [n for n in FITS if (n in QUICK) is quick and (not FITS[n].fsdp2 or torch.__version__ >= "2.6")]
    return "pytorch_lightning" if quick else "lightning.pytorch", names


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched(PROGRAM, tmp_path_factory.mktemp("ranks"), launch)


def slow(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", [*EQUAL, *slow(FURTHER)])
def test_scores_are_those_of_one_process(name: str, ranks: Launched, tmp_path: Path) -> None:
    alone = fit("pytorch_lightning", str(tmp_path / "result"), name)
    first, second = ranks[name]
    assert first["notes"] == second["notes"] == alone["notes"]
    assert first["files"] == second["files"] == FILES
    assert first["parameters"] == second["parameters"] == alone["parameters"]
    assert first["scores"] == second["scores"] == first["again"] and first["scores"].keys() == alone["scores"].keys()
    measured = 0
    for key, (value, control) in alone["scores"].items():
        ours, theirs = first["scores"][key]
        reason = first["reasons"].get(key.split()[0], "")
        if value is None or SPREAD in reason or reason.startswith("under a sharded strategy products"):
            assert ours is theirs is None or value is None, key
            continue
        measured += 1
        assert ours == pytest.approx(value, rel=1e-4, abs=1e-6), key
        # Of the untrained model, drawn alike bit for bit.
        assert theirs == (None if control is None else pytest.approx(control, rel=1e-5)), key
    assert measured >= 16
    if any(type(other).__name__ == "L1Sparsity" for other in FITS[name].others()):
        assert first["scores"]["exact_zero_share None"][0] == alone["scores"]["exact_zero_share None"][0] > 0.3
        assert first["scores"]["sparse_bytes_share None"][0] == alone["scores"]["sparse_bytes_share None"][0] < 0.8
    for ours, other, theirs in zip(first["weights"], second["weights"], alone["weights"], strict=True):
        assert torch.equal(ours, other)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-6)


@pytest.mark.slow
def test_low_precision_is_measured_in_it(ranks: Launched, tmp_path: Path) -> None:
    alone = fit("pytorch_lightning", str(tmp_path / "result"), "low")
    for rank in ranks["low"]:
        assert rank["notes"] == [] and rank["scores"].keys() == alone["scores"].keys()
        for key in ("held_out_kl None", "fvu/net.blocks.0 None", "patch_through_kl None", "gini None"):
            assert rank["scores"][key][0] == pytest.approx(alone["scores"][key][0], rel=0.02)


def test_a_report_changes_nothing(ranks: Launched) -> None:
    for bare, reported in zip(ranks["bare"], ranks["blocks"], strict=True):
        assert torch.equal(bare["rng"], reported["rng"])
        assert all(torch.equal(*pair) for pair in zip(bare["weights"], reported["weights"], strict=True))


@pytest.mark.parametrize("name", [*QUICK, *slow([name for name in FITS if name not in QUICK])])
def test_nothing_is_left(name: str, ranks: Launched) -> None:
    assert [rank["left"] for rank in ranks[name]] == [[], []]


def test_the_default_report_says_what_it_left_out(ranks: Launched) -> None:
    for rank in ranks["default"]:
        assert rank["reasons"]["held_out_kl"].startswith("fitting students would take about")
        assert rank["reasons"]["circuit_nodes"].startswith(SPREAD)
        assert rank["scores"]["exact_zero_share None"] == (0.0, None) and 0 < rank["scores"]["gini None"][0] < 1
        assert any(note.startswith("No page: drawing the model takes about") for note in rank["notes"])


def test_students_are_fitted_where_rank_0_has_the_time(ranks: Launched) -> None:
    for rank in ranks["time on rank 0"]:
        assert rank["scores"]["held_out_kl None"][0] > 0 and rank["files"] == FILES


@pytest.mark.slow
def test_no_student_is_fitted_where_rank_0_has_no_time(ranks: Launched) -> None:
    first, second = ranks["time on rank 1"]
    assert "0 s of the budget are left" in first["reasons"]["held_out_kl"] and first["files"] == ["record.json"]
    assert second["scores"]["held_out_kl None"] == (None, None)


@pytest.mark.parametrize("name", [*FAIL, *slow(SELDOM_FAIL)])
def test_a_rank_that_fails_is_waited_for_by_nobody(name: str, ranks: Launched) -> None:
    first, second = ranks[name]
    assert first["notes"] == ["measuring failed: rank 1 failed: RuntimeError: no memory"]
    assert second["notes"] == ["measuring failed: no memory"]
    assert first["files"] == second["files"] == ["record.json"]
    # What was drawn or gathered is put back.
    assert all(torch.equal(*pair) for pair in zip(first["weights"], second["weights"], strict=True))
    sound = ranks["time on rank 0"] if not FITS[name].fsdp2 else ranks["fails, FSDP2"]
    assert all(torch.allclose(*pair) for pair in zip(first["weights"], sound[0]["weights"], strict=True))


@pytest.mark.slow
def test_a_rank_that_fails_after_all_was_asked_costs_no_record(ranks: Launched) -> None:
    first, second = ranks["fails late"]
    assert first["notes"] == [] and first["files"] == FILES and first["scores"]["held_out_kl None"][0] > 0
    assert second["notes"] == ["measuring failed: no memory"]


@pytest.mark.slow
def test_a_wrapped_module_is_not_validated_again(ranks: Launched) -> None:
    for rank in ranks["layers"]:
        assert rank["refused"].startswith("`datamodule`: Lightning can't validate with a module that FSDPStrategy")
