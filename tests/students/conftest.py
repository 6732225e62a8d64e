"""Signatures and batches of every kind that students read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from legibility.students import Signature, TapSignature

SIGNATURES = {
    "tokens": Signature("tokens", (6,), 7, True, 7, {"block.0": TapSignature(5, True, (6, 5))}),
    "pooled": Signature("tokens", (6,), 3, False, 7, {"pool": TapSignature(4, False, (4,))}),
    "sequence": Signature("sequence", (6, 2), 3, True),
    "image": Signature("image", (2, 8, 8), 4, False, None, {"conv": TapSignature(18, False, (2, 3, 3))}),
    "features": Signature("features", (5,), 3, False),
}


@pytest.fixture(params=SIGNATURES)
def signature(request: pytest.FixtureRequest) -> Signature:
    """One signature after the other."""
    return SIGNATURES[request.param]


@pytest.fixture
def signatures() -> dict[str, Signature]:
    """All signatures by name."""
    return SIGNATURES


def _draw(signature: Signature, batch: int = 3, seed: int = 0, positions: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = signature.input_shape
    if positions is not None:
        shape = (positions, *shape[1:])
    if signature.vocabulary is not None:
        return torch.randint(0, signature.vocabulary, (batch, *shape), generator=generator)
    return torch.randn(batch, *shape, generator=generator)


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """draw(signature, batch=3, seed=0, positions=None): random inputs that fit."""
    return _draw


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What two gloo processes found in every scenario of ranks.py, by scenario: [of rank 0, of rank 1]."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks.py")
    command = [sys.executable, str(script), str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {scenario: [of_rank[scenario] for of_rank in found] for scenario in found[0]}
