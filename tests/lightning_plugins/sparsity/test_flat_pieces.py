"""Groups of weights that FSDP1 has cut into flat pieces: of all kinds, in all layouts, what one process finds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flat_groups import main
from launch import two
from torch import nn

from legibility.lightning_plugins import (
    GroupSparsity,
    L1Sparsity,
    TopKSparsity,
    WiringCost,
    remove_dead_neurons,
    to_torch_sparse,
)

PROGRAM = Path(__file__).parents[2] / "flat_groups.py"


@pytest.mark.parametrize("how", ["one vector", pytest.param("layers", marks=pytest.mark.slow)])
def test_groups_of_flat_pieces_are_those_of_whole_weights(tmp_path: Path, how: str) -> None:
    main("", str(tmp_path / "result"))
    alone = torch.load(tmp_path / "result-1-0.pt", weights_only=True)
    both = two(PROGRAM, "", tmp_path / "result", how)
    assert all(any("neurons of" in key for key in found["numbers"]) for found in alone.values())
    assert "heads of body.self_attn" in alone["attention"]["numbers"]
    for name, expected in alone.items():
        held = [rank[name]["here"] for rank in both]
        assert [sum(pieces) for pieces in zip(*held, strict=True)] == expected["here"], "each number is on one rank"
        assert 0 in held[0] + held[1], "no piece is empty"
        assert any(0 < a < n for a, n in zip(held[0], expected["here"], strict=True)), "nothing is cut"
        for found in (rank[name] for rank in both):
            assert found["words"] == expected["words"]
            torch.testing.assert_close(found["numbers"], expected["numbers"], rtol=1e-6, atol=1e-7)
            zeros = [[w == 0 for w in side["numbers"]["weights"]] for side in (found, expected)]
            assert all(torch.equal(a, b) for a, b in zip(*zeros, strict=True)) and any(w.any() for w in zeros[0])


class FullyShardedDataParallel(nn.Module):
    """What is seen of FSDP1 with `use_orig_params=False`: a vector, and no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.ones(12))
        self._handle = SimpleNamespace(uses_sharded_strategy=True, flat_param=SimpleNamespace(_params=None))


@pytest.mark.parametrize(
    "make",
    [
        lambda strength: L1Sparsity(strength, targets="net.*"),
        lambda strength: TopKSparsity(strength / 2),
        lambda strength: GroupSparsity(strength, "neurons"),
        WiringCost,
    ],
)
def test_where_weights_have_no_names_only_strength_zero_goes(make: Any) -> None:
    model: Any = FullyShardedDataParallel()
    trainer: Any = SimpleNamespace(model=model)
    make(0.0)._install(trainer, model)
    with pytest.raises(ValueError, match="`targets`: FSDPStrategy .* with `use_orig_params=False` has one vector"):
        make(1.0)._install(trainer, model)


@pytest.mark.parametrize("tool", [remove_dead_neurons, to_torch_sparse])
def test_tools_for_whole_weights_refuse_pieces(tool: Any) -> None:
    with pytest.raises(ValueError, match="`model` has sharded weights: load a full state dict"):
        tool(nn.Sequential(FullyShardedDataParallel()))
