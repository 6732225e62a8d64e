"""Which neurons are found in a network, which are left out and why; dead ones are cut out and the outputs stay."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legibility.lightning_plugins import remove_dead_neurons
from legibility.lightning_plugins.sparsity.structure._neurons import neurons
from legibility.lightning_plugins.sparsity.structure._units import heads, rows_or_columns


def named(model: nn.Module) -> dict[str, list[str]]:
    return {units.name: [piece.name for piece in units.pieces] for units in neurons(model)}


class Images(nn.Module):
    """Convolutions, norms, pools and functions of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 8, 3, bias=False)
        self.c = nn.Linear(8 * 4, 7)
        self.d = nn.Linear(7, 5)
        self.e = nn.Linear(5, 3)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = F.max_pool2d(torch.relu(self.b(x)), 2)
        x = self.drop(F.gelu(self.c(x.view(x.size(0), -1))))
        self.last = x.shape  # what tracing sets must not stay
        y: Tensor = self.e(torch.sigmoid(self.d(x)))
        return y


class Residual(nn.Module):
    """A stream that two layers read, and a block of its own beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y: Tensor = self.d(x + self.c(F.gelu(self.b(x))))
        return y


class Decides(nn.Module):
    """Can't be traced: what runs depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.two = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) if x.sum() > 0 else self.two(x)
        return y


def test_the_way_from_layer_to_layer() -> None:
    model = Images()
    assert named(model) == {
        "a": ["a.weight", "a.bias", "b.weight"],
        "b": ["b.weight", "c.weight"],
        "c": ["c.weight", "c.bias", "d.weight"],
        "d": ["d.weight", "d.bias", "e.weight"],
    }
    found = {units.name: units for units in neurons(model)}
    assert [piece.name for piece in found["a"].between] == [
        *("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    ]
    assert {name: units.still for name, units in found.items()} == {"a": False, "b": True, "c": True, "d": False}
    assert (found["b"].outgoing[0].outer, found["b"].outgoing[0].inner) == (1, 4)
    assert neurons(model).left_out == {"e": "its output is the model's"}
    assert not hasattr(model, "last")


def test_what_several_read_or_nobody_known_is_left_out_by_name() -> None:
    assert named(Residual()) == {"b": ["b.weight", "b.bias", "c.weight"]}
    left = neurons(Residual()).left_out
    assert left["a"] == "its output is used 2 times (b, add)"
    assert left["c"] == "its output meets others in add (a residual stream?)"
    assert named(Decides()) == {"one.0": ["one.0.weight", "one.0.bias", "one.2.weight"]}
    assert "LayerNorm), which mixes the units" in neurons(Decides()).left_out["two.0"]


@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)), "0", "not known to treat units one by one"),
        (nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(1), nn.Linear(4, 2)), "0", "not known to treat units one by one"),
        (nn.Sequential(nn.Linear(4, 4), nn.GLU(), nn.Linear(2, 2)), "0", "not known to treat units one by one"),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(4, 2)), "0", "along another dimension"),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1, groups=2)), "0", "grouped convolution"),
        (nn.Sequential(nn.Conv1d(4, 4, 1, groups=4), nn.Conv1d(4, 4, 1)), "0", "grouped convolution"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).requires_grad_(False)), "0", "frozen weight"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.GRU(4, 4)), "0", "GRU"),
        (nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)), "0", "lazy"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)), "0", "parametrised"),
    ],
)
def test_reasons(model: nn.Module, layer: str, reason: str) -> None:
    found = neurons(model)
    assert layer not in [units.name for units in found]
    assert reason in found.left_out[layer]


def test_shared_layers_and_weights_are_left_out() -> None:
    layer = nn.Linear(4, 4)
    assert neurons(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 2))).left_out["0"] == "is called more than once"
    before_shared = neurons(nn.Sequential(nn.Linear(3, 4), layer, layer))
    assert before_shared.left_out["0"] == "1, which reads it, is called more than once"
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    assert neurons(tied).left_out["0"] == "shares its weight with another layer"


def test_a_forward_of_its_own_is_no_linear_layer() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    assert "forward of its own" in neurons(nn.Sequential(Doubled(4, 4), nn.ReLU(), nn.Linear(4, 2))).left_out["0"]
    assert "forward of its own" in neurons(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Doubled(4, 4))).left_out["0"]


def test_tracing_leaves_the_random_stream_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x) + torch.randn(4)
            return y

    model = Noisy()
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    assert len(neurons(model)) == 1
    assert torch.equal(torch.randn(3), expected)


def test_transformer_layers_and_heads() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.ModuleDict({"block": layer})
    assert named(model) == {"block.linear1": ["block.linear1.weight", "block.linear1.bias", "block.linear2.weight"]}
    (found,) = heads(model)
    assert [piece.name.removeprefix("block.self_attn.") for piece in found.pieces] == [
        *("in_proj_weight", "in_proj_bias", "out_proj.weight")
    ]
    assert (found.count, found.size) == (2, 3 * 4 * 8 + 3 * 4 + 8 * 4)
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8)
    with torch.no_grad():
        found.incoming[0].scale(torch.tensor([1.0, 0.0]))
        found.incoming[1].scale(torch.tensor([1.0, 0.0]))
        attention = layer.self_attn
        without_row = attention(x, x, x)[0]
        found.outgoing[0].scale(torch.tensor([1.0, 0.0]))
        # Head 1 alone is gone, and its columns no longer mattered.
        torch.testing.assert_close(attention(x, x, x)[0], without_row)
        assert (attention.in_proj_weight.view(3, 2, 4, 8)[:, 1] == 0).all()
        assert (attention.in_proj_weight.view(3, 2, 4, 8)[:, 0] != 0).all()
        assert (attention.out_proj.weight[:, :4] != 0).all() and (attention.out_proj.weight[:, 4:] == 0).all()


def test_heads_of_attention_with_other_widths() -> None:
    (found,) = heads(nn.MultiheadAttention(8, 4, kdim=6, vdim=5, add_bias_kv=True))
    assert found.count == 4
    assert found.size == 2 * 8 + 2 * 6 + 2 * 5 + 3 * 2 + 2 * 2 + 8 * 2  # q, k, v, in_proj_bias, bias_k and _v, out


def test_rows_and_columns_of_transposed_and_grouped_convolutions() -> None:
    model = nn.ModuleDict({"up": nn.ConvTranspose2d(3, 5, 2), "deep": nn.Conv2d(4, 4, 3, groups=4)})
    names = ["up.weight", "deep.weight"]
    assert [units.count for units in rows_or_columns(model, names, rows=True)] == [5, 4]
    columns = rows_or_columns(model, names, rows=False)
    assert [units.count for units in columns] == [3]
    assert list(columns.left_out) == ["deep.weight"]


def test_lengths_are_of_whole_units() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        model[0].bias.copy_(torch.tensor([2.0, 0.0]))
        model[2].weight.copy_(torch.tensor([[4.0, 4.0]]))
    (found,) = neurons(model)
    assert found.lengths().tolist() == [5.0, 5.0]  # sqrt(1 + 4 + 4 + 16), sqrt(9 + 16)
    assert found.size == 4


def kill(model: nn.Module, *, share: float, columns: bool) -> None:
    """Makes a share of the neurons of each layer dead."""
    generator = torch.Generator().manual_seed(3)
    for units in neurons(model):
        alive = (torch.rand(units.count, generator=generator) > share).float()
        for piece in units.outgoing if columns else units.incoming:
            piece.scale(alive)


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_the_smaller_network_computes_the_same(columns: bool, training: bool) -> None:
    torch.manual_seed(0)
    model = Images().train(training)
    model.drop.p = 0.0
    x = torch.randn(64, 1, 9, 9)
    model(x)  # running statistics that are not 0 and 1
    kill(model, share=0.5, columns=columns)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller: Any = remove_dead_neurons(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert sum(p.numel() for p in smaller.model.parameters()) < sum(p.numel() for p in model.parameters())
    # Behind a norm or a sigmoid a dead row is not a dead neuron.
    assert set(smaller.removed) == ({"a", "b", "c", "d"} if columns else {"b", "c"})
    torch.testing.assert_close(smaller.model(x), model(x), rtol=1e-6, atol=1e-6)
    assert smaller.model.a.out_channels == smaller.model.norm.num_features == smaller.model.b.in_channels
    assert smaller.model.c.in_features == 4 * smaller.model.b.out_channels
    smaller.model(x).sum().backward()


def test_a_constant_neuron_stays_and_a_dead_layer_keeps_one() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data.zero_()  # the biases are not zero
    smaller = remove_dead_neurons(model)
    assert smaller.removed == {} and smaller.left == {"2": "its output is the model's"}
    model[2].weight.data.zero_()
    smaller = remove_dead_neurons(model)
    assert smaller.removed == {"0": 3}
    x = torch.randn(5, 3)
    assert torch.equal(smaller.model(x), model(x))


def test_what_can_not_be_cut_stays_whole_by_name() -> None:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model.a.weight[0].zero_()
        model.a.bias[0].zero_()
        model.c.weight[:, 1] = 0
    smaller = remove_dead_neurons(model)
    assert smaller.removed == {"b": 1} and "used 2 times" in smaller.left["a"]
    x = torch.randn(6, 4)
    torch.testing.assert_close(smaller.model(x), model(x), rtol=1e-6, atol=1e-6)


def test_death_spreads_backwards() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[4].weight[:, 0] = 0  # neuron 0 of the second layer is dead,
        model[2].weight[1:, 2] = 0  # and it was the only one to read neuron 2 of the first
    smaller = remove_dead_neurons(model)
    assert smaller.removed == {"0": 1, "2": 1}
    x = torch.randn(6, 3)
    torch.testing.assert_close(smaller.model(x), model(x), rtol=1e-6, atol=1e-6)
