"""What zeros would save, by hand."""

import torch
from torch import nn

from legibility.scores import sparse_bytes, sparse_flops


def test_bytes() -> None:
    dense, sparse = torch.ones(10, 10), torch.zeros(10, 10)
    sparse[0] = 1
    assert sparse_bytes([dense]) == 400
    assert sparse_bytes([sparse]) == 40 + 13
    assert sparse_bytes([dense, sparse.bfloat16()]) == 400 + 20 + 13
    assert sparse_bytes([]) == 0


def test_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 10))
    weights = {name: p for name, p in net.named_parameters() if p.ndim > 1}
    conv, linear = 2 * 5 * 4 * (2 * 2) * (2 * 9), 2 * 5 * 16 * 10
    x = torch.randn(5, 2, 4, 4)
    assert sparse_flops(net, x, weights=weights) == (conv + linear, conv + linear)
    with torch.no_grad():
        weights["0.weight"][:3] = 0  # three of four filters
        weights["3.weight"][:, :8] = 0
    assert sparse_flops(net, x, weights=weights) == (conv + linear, conv // 4 + linear // 2)
    assert sparse_flops(net, x, weights={}) == (conv + linear, conv + linear)
    assert not net[0]._forward_hooks and not net[0]._forward_pre_hooks


def test_attention_keeps_what_has_no_weights() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 5, 8)
    whole, needed = sparse_flops(lambda a: attention(a, a, a), x, weights={})
    assert whole == needed
    weights = {"in": attention.in_proj_weight, "out": attention.out_proj.weight}
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
    whole, needed = sparse_flops(lambda a: attention(a, a, a), x, weights=weights)
    # Four projections of 15 positions, 8 to 8; query x key and weights x value remain.
    assert whole - needed == 4 * 2 * 15 * 8 * 8
    assert needed == 2 * (2 * 3 * 2 * 5 * 5 * 4)
