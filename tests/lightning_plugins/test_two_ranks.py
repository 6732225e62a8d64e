"""Two ranks with half a batch each do what one process does with the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from launch import two
from torch import Tensor
from two_ranks import main

PROGRAM = Path(__file__).parents[1] / "two_ranks.py"


def _alone(tmp_path: Path, namespace: str, which: str, accumulate: int) -> dict[str, Any]:
    main(namespace, str(tmp_path / "result"), which, str(accumulate))
    found: dict[str, Any] = torch.load(tmp_path / "result-1-0.pt", weights_only=True)
    return found


def _same(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-6; what was measured is up to 1e-7, the rounding of float32."""
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("namespace", "which", "accumulate"),
    [
        ("pytorch_lightning", "legibility", 1),
        ("lightning.pytorch", "legibility", 2),
        ("pytorch_lightning", "l1", 1),
        ("lightning.pytorch", "neurons", 1),
        ("pytorch_lightning", "wiring", 1),
        ("lightning.pytorch", "top_k", 2),
        ("pytorch_lightning", "goal", 1),
        ("lightning.pytorch", "latent", 1),
        ("pytorch_lightning", "latent top_k", 1),
        ("lightning.pytorch", "loss_budget", 1),
        ("pytorch_lightning", "activations", 2),
        ("lightning.pytorch", "manual", 1),
    ],
)
def test_two_ranks_equal_one_process(tmp_path: Path, namespace: str, which: str, accumulate: int) -> None:
    alone = _alone(tmp_path, namespace, which, accumulate)
    first, second = two(PROGRAM, namespace, tmp_path / "result", which, str(accumulate))
    assert torch.equal(first["weights"], second["weights"]), "ranks disagree"
    _same(first["weights"], alone["weights"])
    assert len(first["gradients"]) == len(alone["gradients"]) == (48 if which == "manual" else 24 // accumulate)
    for ours, theirs in zip(first["gradients"], alone["gradients"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            _same(a, b)
    if which == "neurons":
        assert (alone["weights"].view(-1) == 0).sum() > 64
        assert torch.equal(first["weights"] == 0, alone["weights"] == 0)
    if which in ("top_k", "goal", "latent", "latent top_k"):
        assert (alone["weights"] == 0).float().mean() > 0.3
        assert ((first["weights"] == 0) != (alone["weights"] == 0)).float().mean() < 1e-3
    if which == "wiring":
        for line, places in alone["places"].items():
            assert torch.equal(first["places"][line], places) and torch.equal(second["places"][line], places)
        assert any((places != torch.arange(len(places))).any() for places in alone["places"].values())
    if which in ("legibility", "manual"):
        assert any(alone["active"].values()) and alone["active"] == first["active"] == second["active"]
        for name, weights in alone["students"].items():
            assert torch.equal(first["students"][name], second["students"][name])
            _same(first["students"][name], weights)
        # Adam forgives a factor (a sum instead of a mean): the gradients that it gets are compared too.
        assert len(first["student_gradients"]) == len(alone["student_gradients"]) == 24 // accumulate
        for ours, theirs in zip(first["student_gradients"], alone["student_gradients"], strict=True):
            assert max(gradient.abs().max() for gradient in theirs) > 1e-3
            for a, b in zip(ours, theirs, strict=True):
                _same(a, b)
