"""Two ranks that hold half of every weight each (FSDP2), or of a vector of all (FSDP1), do what one process does."""

from pathlib import Path

import pytest
import torch
from launch import two
from two_shards import main

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.6", reason="before torch 2.6, FSDP2 does not run on a CPU: it needs CUDA's streams"
)
PROGRAM = Path(__file__).parents[1] / "two_shards.py"


@pytest.mark.parametrize(
    ("namespace", "which"),
    [
        ("pytorch_lightning", "legibility"),
        ("lightning.pytorch", "l1"),
        ("pytorch_lightning", "top_k"),
        ("lightning.pytorch", "preconditioned"),
        ("pytorch_lightning", "goal"),
        ("lightning.pytorch", "rows"),
        ("pytorch_lightning", "columns"),
        ("lightning.pytorch", "neurons"),
        ("pytorch_lightning", "wiring"),
        ("lightning.pytorch", "latent"),
        pytest.param("pytorch_lightning", "by rows", marks=pytest.mark.slow),
        pytest.param("pytorch_lightning", "words", marks=pytest.mark.slow),
    ],
)
def test_sharded_weights_equal_whole_ones(tmp_path: Path, namespace: str, which: str) -> None:
    main(namespace, str(tmp_path / "result"), which)
    alone = torch.load(tmp_path / "result-1-0.pt", weights_only=True)
    first, second = two(PROGRAM, namespace, tmp_path / "result", which)
    assert first["names"] == second["names"] == alone["names"], "students are in the state"
    assert torch.equal(first["weights"], second["weights"]), "ranks disagree"
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
    assert len(first["gradients"]) == len(alone["gradients"]) == 24
    for ours, theirs in zip(first["gradients"], alone["gradients"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    if which != "legibility":
        zeros = alone["weights"] == 0
        assert zeros.any()
        if which == "top_k":  # of the matrices' 10 x 64 + 64 x 64 + 64 x 5
            assert (first["weights"] == 0).sum() == zeros.sum() == 5056 - round(0.2 * 5056)
        assert ((first["weights"] == 0) != zeros).float().mean() < 1e-3
    else:
        assert any(alone["active"].values())
        assert first["active"] == second["active"] == alone["active"]
        for ours, other, theirs in zip(first["students"], second["students"], alone["students"], strict=True):
            assert torch.equal(ours, other)
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("namespace", "which", "how"),
    [
        ("lightning.pytorch", "l1", "flat"),  # rank 1 holds nothing of the first weight, and half of the second
        ("pytorch_lightning", "top_k", "flat layers"),
        ("lightning.pytorch", "neurons", "flat"),
        ("pytorch_lightning", "latent", "flat"),
        ("lightning.pytorch", "by rows", "flat"),
        pytest.param("pytorch_lightning", "by rows", "flat layers", marks=pytest.mark.slow),
        pytest.param("lightning.pytorch", "words", "flat", marks=pytest.mark.slow),
        pytest.param("lightning.pytorch", "preconditioned", "flat", marks=pytest.mark.slow),
        pytest.param("pytorch_lightning", "neurons", "flat layers", marks=pytest.mark.slow),
        pytest.param("pytorch_lightning", "rows", "flat", marks=pytest.mark.slow),
        pytest.param("lightning.pytorch", "columns", "flat", marks=pytest.mark.slow),
        pytest.param("pytorch_lightning", "wiring", "flat", marks=pytest.mark.slow),
        pytest.param("lightning.pytorch", "activations", "flat layers", marks=pytest.mark.slow),
        pytest.param("pytorch_lightning", "instead", "flat", marks=pytest.mark.slow),
        # no weight has a name, and none is asked for
        pytest.param("lightning.pytorch", "zero", "flat vector", marks=pytest.mark.slow),
        pytest.param("lightning.pytorch", "wiring", "flat layers", marks=pytest.mark.slow),
        pytest.param("pytorch_lightning", "plain", "flat", marks=pytest.mark.slow),
        pytest.param("lightning.pytorch", "each", "flat", marks=pytest.mark.slow),
        pytest.param("pytorch_lightning", "top_k", "flat", marks=pytest.mark.slow),
        pytest.param("lightning.pytorch", "goal", "flat layers", marks=pytest.mark.slow),
    ],
)
def test_flat_pieces_of_weights_equal_whole_ones(tmp_path: Path, namespace: str, which: str, how: str) -> None:
    main(namespace, str(tmp_path / "result"), which, how)
    alone = torch.load(tmp_path / "result-1-0.pt", weights_only=True)
    first, second = two(PROGRAM, namespace, tmp_path / "result", which, how)
    assert torch.equal(first["weights"], second["weights"]), "ranks disagree"
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
    assert torch.equal(first["weights"] == 0, alone["weights"] == 0)
    assert first["zeros"] == second["zeros"] == alone["zeros"]
    assert which in ("activations", "zero") or first["zeros"][0] > 0.1
    if which == "top_k":
        assert (first["weights"] == 0).sum() == 5056 - round(0.2 * 5056)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "how", "message"),
    [
        ("l1", "flat vector", "`targets`: FSDPStrategy .* with `use_orig_params=False`"),
    ],
)
def test_what_flat_pieces_cannot_give_is_refused(tmp_path: Path, which: str, how: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):  # of a rank, with what it printed
        two(PROGRAM, "pytorch_lightning", tmp_path / "result", which, how)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["legibility", "several", "latent", "by rows"])
def test_a_grid_of_ranks_equals_one_process(tmp_path: Path, which: str) -> None:
    """Two dimensions of sharding at once, FSDP2 and tensor parallelism: counts are of all four ranks."""
    main("pytorch_lightning", str(tmp_path / "result"), which)
    alone = torch.load(tmp_path / "result-1-0.pt", weights_only=True)
    ranks = two(PROGRAM, "pytorch_lightning", tmp_path / "result", which, "grid", world=4)
    assert all(torch.equal(ranks[0]["weights"], rank["weights"]) for rank in ranks), "ranks disagree"
    torch.testing.assert_close(ranks[0]["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
    assert torch.equal(ranks[0]["weights"] == 0, alone["weights"] == 0)
    if which == "legibility":
        assert any(alone["active"].values())
        for ours, theirs in zip(ranks[0]["students"], alone["students"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    else:
        assert alone["zeros"][0] > 0.1 and ranks[0]["zeros"] == alone["zeros"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "how"),
    [
        ("latent", "whole"),
        ("latent", "flat"),
        ("latent", "flat layers"),
        ("legibility", "whole"),
        ("l1", "whole"),
        ("top_k", "whole"),
        ("l1", "flat"),
        ("top_k", "flat layers"),
        ("neurons", "flat"),
    ],
)
def test_resume_under_sharding_equals_uninterrupted(tmp_path: Path, which: str, how: str) -> None:
    (whole, _), (resumed, _) = (
        two(PROGRAM, "pytorch_lightning", tmp_path / "result", which, way)
        for way in (how, "resumed" if how == "whole" else f"{how} resumed")
    )
    assert torch.equal(whole["weights"], resumed["weights"])
    if which == "legibility":
        assert all(torch.equal(*pair) for pair in zip(whole["students"], resumed["students"], strict=True))
