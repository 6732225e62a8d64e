"""Starts a test program twice, as the two ranks of one gloo group."""

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tiny import loader


def two(
    program: Path, namespace: str, out: Path, *arguments: str, gpus: bool = False, world: int = 2
) -> list[dict[str, Any]]:
    """Runs `program NAMESPACE OUT ARGUMENTS` on two ranks, or more; returns what each saved as OUT-WORLD-RANK.pt."""
    port = _free_port()
    path = os.pathsep.join(filter(None, [str(program.parent), os.environ.get("PYTHONPATH")]))
    base = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
    processes = []
    for rank in range(world):
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        ranks |= {"WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(program), namespace, str(out), *arguments]
        processes.append(
            subprocess.Popen(command, env=base | ranks, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        for process in processes:
            printed, _ = process.communicate(timeout=280)
            assert process.returncode == 0, printed
    finally:
        for process in processes:
            process.kill()  # one that waits for the other's death would wait for half an hour
    return [torch.load(f"{out}-{world}-{rank}.pt", weights_only=True) for rank in range(world)]


def _free_port() -> int:
    """Below the range that systems take ports for outgoing connections from: seconds pass until rank 0 listens."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def place() -> tuple[int, int]:
    """How many ranks there are, and which of them this process is."""
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))


def part_of_each_batch(batches: int, together: int = 1) -> tuple[list[Any], int]:
    """This rank's rows of the same global batches of 16, and how many of each batch they are.

    Args:
        batches: How many.
        together: Of so many ranks in a row each gets the same rows.
    """
    world, rank = (number // together for number in place()) if place()[0] > 1 else (1, 0)
    data = loader(rows=batches * 16, batch_size=1).dataset
    share = 16 // world
    starts = range(rank * share, batches * 16, 16)
    return [data[i] for start in starts for i in range(start, start + share)], share
