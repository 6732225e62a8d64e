"""DDP and FSDP2, by Lightning and by hand: each rank's gradients are those of the objective written out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import STUDENTS, WrittenOut
from launch import two
from scenarios import DDP, FSDP2, STRENGTH, batches, written_out
from torch import Tensor
from two_in_scenarios import PROGRAMS

PROGRAM = Path(__file__).parents[1] / "two_in_scenarios.py"
ONE_MODEL = ["two optimizers", "two backwards through one forward", "gradients zeroed between two backwards"]
GANS = ["GAN attached, d", "GAN one generator call reused, g", "GAN one generator call reused, zeroed in place, g"]
# By hand, a rank that trains a GAN leaves parameters unused in each backward pass.
LAUNCHED = {
    "lightning.pytorch": [*DDP, "by hand: two optimizers", "by hand: two backwards through one forward"],
    "pytorch_lightning": [*FSDP2, *(f"FSDP2 by hand: {name}" for name in [*ONE_MODEL, *GANS])],
}
LOW = ("bf16-mixed", "FSDP2, bf16")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the two ranks of each scenario saw: one launch for each namespace."""
    found = {}
    for namespace, names in LAUNCHED.items():
        pytest.importorskip(namespace)
        both = two(PROGRAM, namespace, tmp_path_factory.mktemp("ranks") / "result", *names)
        found |= {name: [rank[name] for rank in both] for name in names}
    return found


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
def test_ranks_do_what_is_written_out(name: str, ranks: dict[str, list[Any]]) -> None:
    first, second = ranks[name]
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


def test_split_ranks_have_students_of_their_own(ranks: dict[str, list[Any]]) -> None:
    for name, whose in (("split", ["mlp"]), ("split, uneven", ["mlp", "mlp_3"]), ("FSDP2, split", ["mlp"])):
        first, second = ranks[name]
        assert list(first["students"]) == whose and list(second["students"]) == ["mlp_2"]
    assert len(STUDENTS) == 2
    together, split = ranks["plain"][0]["weights"], ranks["split"][0]["weights"]
    assert max(float((a - b).abs().max()) for a, b in zip(together, split, strict=True)) > 1e-4, "another objective"
