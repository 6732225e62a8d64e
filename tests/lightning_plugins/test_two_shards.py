"""Two ranks that hold half of every weight each (FSDP2) do what one process does with the whole."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from two_shards import main

PROGRAM = Path(__file__).parents[1] / "two_shards.py"


def _two(out: Path, *arguments: str) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    base["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")])
    processes = []
    for rank in range(2):
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        ranks |= {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(PROGRAM), arguments[0], str(out), *arguments[1:]]
        processes.append(
            subprocess.Popen(command, env=base | ranks, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for process in processes:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed
    return [torch.load(f"{out}-2-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    ("namespace", "which"),
    [("pytorch_lightning", "legibility"), ("lightning.pytorch", "l1")],
)
def test_sharded_weights_equal_whole_ones(tmp_path: Path, namespace: str, which: str) -> None:
    main(namespace, str(tmp_path / "result"), which)
    alone = torch.load(tmp_path / "result-1-0.pt", weights_only=True)
    first, second = _two(tmp_path / "result", namespace, which)
    assert first["names"] == second["names"] == alone["names"], "students are in the state"
    assert torch.equal(first["weights"], second["weights"]), "ranks disagree"
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
    assert len(first["gradients"]) == len(alone["gradients"]) == 24
    for ours, theirs in zip(first["gradients"], alone["gradients"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    if which == "l1":
        zeros = alone["weights"] == 0
        assert zeros.any()
        assert ((first["weights"] == 0) != zeros).float().mean() < 1e-3
    else:
        assert any(alone["active"].values())
        assert first["active"] == second["active"] == alone["active"]
        for ours, other, theirs in zip(first["students"], second["students"], alone["students"], strict=True):
            assert torch.equal(ours, other)
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["legibility", "l1"])
def test_resume_under_sharding_equals_uninterrupted(tmp_path: Path, which: str) -> None:
    (whole, _), (resumed, _) = (_two(tmp_path / how, "pytorch_lightning", which, how) for how in ("whole", "resumed"))
    assert torch.equal(whole["weights"], resumed["weights"])
    if which == "legibility":
        assert all(torch.equal(*pair) for pair in zip(whole["students"], resumed["students"], strict=True))
