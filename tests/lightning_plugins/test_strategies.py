"""DDP and FSDP2, by Lightning and by hand: each rank's gradients are those of the objective written out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import STUDENTS, WrittenOut
from launch import Launched
from scenarios import DDP, FSDP2, STRENGTH, Scenario, batches, written_out
from tiny import loader, make_module, weights_of
from torch import Tensor
from two_in_scenarios import PROGRAMS, reported

from legibility.lightning_plugins import StudentLegibility

PROGRAM = Path(__file__).parents[1] / "two_in_scenarios.py"
ONE_MODEL = ["two optimizers", "two backwards through one forward", "gradients zeroed between two backwards"]
GANS = ["GAN attached, d", "GAN one generator call reused, g", "GAN one generator call reused, zeroed in place, g"]
TENSOR_PARALLEL = ["tensor parallel: tensor", "tensor parallel: DTensor"]
# By hand, a rank that trains a GAN leaves parameters unused in each backward pass.
LAUNCHED = {
    "lightning.pytorch": [*DDP, "by hand: two optimizers", "by hand: two backwards through one forward"],
    "pytorch_lightning": [*FSDP2, *TENSOR_PARALLEL, *(f"FSDP2 by hand: {name}" for name in [*ONE_MODEL, *GANS])],
}
BESIDE = {
    "lightning.pytorch": ["report: DDP", "split life", "static graph, accumulated"],
    "pytorch_lightning": ["report: FSDP2", "FSDP1", "tensor parallel: parts"],
}
LOW = ("bf16-mixed", "FSDP2, bf16")


def launch(name: str) -> tuple[str, list[str]]:
    namespace = next(key for key in LAUNCHED if name in [*LAUNCHED[key], *BESIDE[key]])
    if any("FSDP2" in each for each in LAUNCHED[namespace]) and torch.__version__ < "2.6":
        pytest.skip("before torch 2.6, FSDP2 does not run on a CPU: it needs CUDA's streams")
    return namespace, [*LAUNCHED[namespace], *BESIDE[namespace]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched(PROGRAM, tmp_path_factory.mktemp("ranks"), launch)


def _by_hand(name: str) -> dict[str, Any]:
    program, optimizers, primary = PROGRAMS[name]
    loop = WrittenOut(primary, optimizers, STRENGTH)
    loop.run(program, batches())
    assert loop.cohort is not None
    return {
        "gradients": loop.seen,
        "weights": [p.detach() for p in loop.nets.parameters()],
        "students": {n: [p.detach() for p in net.parameters()] for n, net in loop.cohort.networks.items()},
        "active": loop.cohort.active,
    }


def _close(ours: list[Tensor], theirs: list[Tensor], tolerance: float, share: float) -> None:
    """Equal to a tolerance or, in half precision, as a whole: single numbers differ by cancellation there."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (ours, theirs))
    assert torch.isfinite(a).all()
    assert (a - b).norm() <= share * b.norm() if share else (a - b).abs().max() <= tolerance


@pytest.mark.parametrize("name", [name for names in LAUNCHED.values() for name in names])
def test_ranks_do_what_is_written_out(name: str, ranks: Launched) -> None:
    first, second = ranks[name]
    if name in TENSOR_PARALLEL:
        expected = written_out(Scenario(slices=lambda index, rank: slice(0, 16)))
    else:
        expected = _by_hand(name.split(": ")[1]) if ": " in name else written_out((DDP | FSDP2)[name])
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True)), "ranks disagree"
    assert first["left"] == second["left"] == []
    share = 2e-2 if name in LOW else 0.0
    assert len(first["gradients"]) == len(expected["gradients"])
    for ours, theirs in zip(first["gradients"], expected["gradients"], strict=True):
        _close(ours, theirs, 1e-6, share)
    _close(first["weights"], expected["weights"], 1e-6, share)
    assert all(expected["active"].values()), "the term was never there"
    assert expected["active"] == first["active"] | second["active"]
    for rank in (first, second):
        for student, weights in rank["students"].items():
            # Adam enlarges rounding where a gradient is nearly zero; one step is 1e-2 or 3e-2.
            _close(weights, expected["students"][student], 1e-5, 5e-2 if share else 0.0)


def test_a_static_graph_with_accumulation_fails_in_torch_with_and_without_students(ranks: Launched) -> None:
    for rank in ranks["static graph, accumulated"]:
        assert "expect_autograd_hooks_" in rank["bare"] and rank["ours"] == rank["bare"]
        assert rank["ours, steps"] == rank["bare, steps"]


def test_activations_that_ranks_have_parts_of_are_refused(ranks: Launched) -> None:
    for rank in ranks["tensor parallel: parts"]:
        assert rank["said"].startswith(
            "`taps` = 'net.trunk.0': the ranks of tensor parallelism don't see the same numbers"
        )


def test_fsdp1_does_what_is_written_out(ranks: Launched) -> None:
    expected = written_out(Scenario())
    assert all(expected["active"].values()), "the term was never there"
    for rank in ranks["FSDP1"]:
        assert rank["left"] == [] and rank["active"] == expected["active"]
        _close(rank["weights"], expected["weights"], 1e-6, 0.0)
        for student, weights in rank["students"].items():
            _close(weights, expected["students"][student], 1e-5, 0.0)


def test_split_ranks_have_students_of_their_own(ranks: Launched) -> None:
    for name, whose in (("split", ["mlp"]), ("split, uneven", ["mlp", "mlp_3"]), ("FSDP2, split", ["mlp"])):
        first, second = ranks[name]
        assert list(first["students"]) == whose and list(second["students"]) == ["mlp_2"]
    assert len(STUDENTS) == 2
    together, split = ranks["plain"][0]["weights"], ranks["split"][0]["weights"]
    assert max(float((a - b).abs().max()) for a, b in zip(together, split, strict=True)) > 1e-4, "another objective"


@pytest.fixture(scope="module")
def life(ranks: Launched) -> list[Any]:
    return ranks["split life"]


def test_split_students_resume_exactly(life: list[Any]) -> None:
    for rank in life:
        whole, resumed = rank["whole"], rank["resumed"]
        assert all(torch.equal(a, b) for a, b in zip(whole["weights"], resumed["weights"], strict=True))
        ((name, weights),) = whole["students"].items()
        assert all(torch.equal(a, b) for a, b in zip(weights, resumed["students"][name], strict=True))
        assert rank["resumed as all"].startswith("`sync`: the students of this checkpoint are split over 2 ranks")
        assert rank["stopped"] == "stopped"
        assert "while a fit was being interrupted" in rank["resumed from an exception"]


def test_fewer_students_than_ranks_are_refused(life: list[Any]) -> None:
    for rank in life:
        assert "at least one student for each rank, got 1 for 2 ranks" in rank["too few"]


def test_every_split_student_is_logged_and_printed_on_rank_0(life: list[Any]) -> None:
    first, second = life
    for student in ("mlp", "mlp_2"):
        assert f"legibility/student/{student}/imitation" in first["logged"]
        assert f"legibility/student/{student}/disagreement" in first["logged"]
        assert student in first["printed"]
    assert first["logged"]["legibility/term"] == second["logged"]["legibility/term"] > 0
    assert "rank" in first["printed"] and second["printed"] == ""


def test_a_student_that_fails_on_its_rank_is_known_on_all(life: list[Any]) -> None:
    first, second = life
    assert list(first["failed"]) == list(second["failed"]) == ["mlp_2"]
    assert first["warned"] == [] and len(second["warned"]) == 1, "its own rank says so, at once"


@pytest.mark.parametrize("strategy", ["DDP", "FSDP2"])
def test_the_report_of_ranks_is_that_of_one_process(strategy: str, ranks: Launched, tmp_path: Path) -> None:
    first, second = ranks[f"report: {strategy}"]
    alone = reported("pytorch_lightning", str(tmp_path / "result"), "alone")
    written = ["model.html", "picture.json.gz", "record.json"]
    assert first["files"] == second["files"] == written, "written once, and before any rank goes on"
    assert first["notes"] == alone["notes"] == []
    assert first["scores"].keys() == alone["scores"].keys() and len(alone["scores"]) > 20
    assert any(control is not None for _, control in alone["scores"].values()), "the random-init control"
    assert alone["scores"]["exact_zero_share None"][0] > 0
    if strategy == "FSDP2":  # products read gathered copies of the weights: it says so instead of counting
        assert first["scores"].pop("sparse_flops_share None") == (None, None)
        assert alone["scores"].pop("sparse_flops_share None")[0] < 1
    for name, pair in alone["scores"].items():
        for ours, theirs in zip(first["scores"][name], pair, strict=True):
            assert ours == (None if theirs is None else pytest.approx(theirs, rel=1e-4, abs=1e-6)), name
    assert first["guards"] == pytest.approx(alone["guards"], rel=1e-4)
    for rank in (first, second):  # measuring left the model as it was, the shards too
        _close(rank["weights"], alone["weights"], 1e-6, 0.0)


def test_split_in_one_process_is_all(pl: Any, trainer: Callable[..., Any]) -> None:
    states = []
    for sync in ("all", "split"):
        module = make_module(pl)
        plugin = StudentLegibility(STRENGTH, students=STUDENTS, warmup=0.0, summary=False, sync=sync)
        own = trainer([plugin])
        own.fit(module, loader())
        assert plugin.built is not None and list(plugin.built.cohort.networks) == ["mlp", "mlp_2"]
        states.append((weights_of(module), plugin.state_dict()))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1].keys() == states[1][1].keys()


@pytest.mark.parametrize("state", [{"start": 0, "cohort": {}, "ranks": 2}, {"start": 0, "cohort": {}, "ranks": 4}])
def test_split_students_do_not_resume_on_other_ranks(state: Any, pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    plugin = StudentLegibility(students=STUDENTS, summary=False, sync="split")
    plugin.load_state_dict(state)
    with pytest.raises(ValueError, match=f"split over {state['ranks']} ranks.*this fit not split"):
        trainer([plugin]).fit(module, loader())
    assert not any(name in vars(module) for name in ("training_step", "manual_backward"))
