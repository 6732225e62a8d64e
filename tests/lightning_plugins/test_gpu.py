"""What only a CUDA device can show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import two
from scenarios import Scenario, written_out
from tiny import loader, make_module, weights_of
from torch import Tensor

from legibility.lightning_plugins import InterpretabilityReport, L1Sparsity, StudentLegibility
from legibility.students import MLPStudent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def students(strength: float) -> StudentLegibility:
    return StudentLegibility(strength, students=[MLPStudent(width=16)], warmup=0.0, summary=False, taps="net.0")


def fit(pl: Any, trainer: Callable[..., Any], device: str, *callbacks: Any, **options: Any) -> tuple[Any, Tensor]:
    module = make_module(pl)
    own = trainer(callbacks, accelerator=device, devices=1, max_epochs=3, **options)
    own.fit(module, loader(), loader())
    return own, weights_of(module).cpu()


def test_the_device_changes_rounding_only(pl: Any, trainer: Callable[..., Any]) -> None:
    legibility = students(0.7)
    _, there = fit(pl, trainer, "gpu", legibility)
    _, here = fit(pl, trainer, "cpu", students(0.7))
    _, bare = fit(pl, trainer, "cpu")
    assert legibility.built is not None
    assert all(p.is_cuda for network in legibility.built.cohort.networks.values() for p in network.parameters())
    torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-3)
    assert (bare - here).abs().max() > 10 * (there - here).abs().max()


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_strength_zero_is_no_callback_bit_for_bit(pl: Any, trainer: Callable[..., Any], precision: str) -> None:
    _, bare = fit(pl, trainer, "gpu", precision=precision)
    _, zero = fit(pl, trainer, "gpu", students(0.0), L1Sparsity(0.0), precision=precision)
    assert torch.equal(bare, zero)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_adds_the_same_term(pl: Any, trainer: Callable[..., Any], precision: str) -> None:
    _, full = fit(pl, trainer, "gpu", students(0.7))
    _, mixed = fit(pl, trainer, "gpu", students(0.7), precision=precision)
    _, bare = fit(pl, trainer, "gpu", precision=precision)
    assert torch.isfinite(mixed).all()
    assert (mixed - full).norm() < 0.2 * (mixed - bare).norm()


def test_zeros_and_the_report(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    report = InterpretabilityReport(folder=str(tmp_path), queries=32, held_out=[MLPStudent(width=8)], passes=1)
    own, weights = fit(pl, trainer, "gpu", L1Sparsity(20.0), report)
    assert (weights == 0).any()
    assert list(tmp_path.rglob("*.json"))
    assert own.state.finished


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_fsdp1_does_what_is_written_out(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "two_in_scenarios.py"
    both = two(program, "pytorch_lightning", tmp_path / "result", "FSDP1", gpus=True)
    expected = written_out(Scenario())
    for rank in (found["FSDP1"] for found in both):
        for ours, theirs in zip(rank["weights"], expected["weights"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert all(expected["active"].values()) and rank["active"] == expected["active"]
        for student, weights in expected["students"].items():
            for ours, theirs in zip(rank["students"][student], weights, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
