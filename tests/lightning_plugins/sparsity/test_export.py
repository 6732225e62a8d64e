"""Sparse weights on disk: bit-equal again, smaller, and clear about files that are none."""

from pathlib import Path

import pytest
import torch
from torch import nn

from legibility.lightning_plugins import load_sparse, save_sparse


def sparse_net(share: float = 0.9) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(9, 8), nn.Linear(8, 33), nn.BatchNorm1d(33), nn.Conv1d(3, 5, 3), nn.Linear(8, 9, bias=False)
    )
    model[4].weight = model[0].weight
    for weight in model.parameters():
        weight.data[torch.rand(weight.shape) < share] = 0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_what_comes_back_is_bit_equal(tmp_path: Path, dtype: torch.dtype, share: float) -> None:
    model = sparse_net(share).to(dtype)
    save_sparse(tmp_path / "net.safetensors", model)
    found = load_sparse(tmp_path / "net.safetensors")
    expected = model.state_dict()
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    other: nn.Sequential = sparse_net(0.5).to(dtype)
    other.load_state_dict(found)
    assert torch.equal(other.get_parameter("0.weight"), model.get_parameter("0.weight"))


def test_zeros_take_a_bit(tmp_path: Path) -> None:
    model = nn.Linear(1000, 100, bias=False)
    model.weight.data[:, 30:] = 0  # 97 %
    size = save_sparse(tmp_path / "net.safetensors", model)
    assert 4 * 3000 + 12_500 < size < 4 * 3000 + 12_500 + 400


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_sparse(tmp_path / name, sparse_net())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"], "temporary files are left"


def test_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError):
        load_sparse(file)
    save_sparse(file, sparse_net())
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="`path`.*truncated"):
        load_sparse(file)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="`path`.*expected 'legibility.sparse/1'"):
        load_sparse(file)


def test_lazy_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`module`: weight is .*lazy"):
        save_sparse(tmp_path / "net.safetensors", nn.LazyLinear(3))
    assert not list(tmp_path.iterdir())
