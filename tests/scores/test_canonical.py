"""Canonical weights: the function stays, and what doesn't change the function goes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from legibility.scores import canonicalise


def mlp(seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.LeakyReLU(), nn.Linear(12, 3))


def conv() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5),
            nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
        )  # fmt: skip
        model(torch.randn(32, 1, 8, 8) * 3 + 1)  # running statistics of its own
        return model.eval()


@torch.no_grad()
def rescaled(model: Any, joints: list[tuple[int, int]], spread: float = 2.0) -> Any:
    """The same function: units of one layer scaled up, the next layer's columns down."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for first, second in joints:
        weight, bias, after = twin[first].weight, twin[first].bias, twin[second].weight
        scale = (torch.randn(len(weight), generator=generator) * spread).exp()
        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
        bias.mul_(scale)
        columns = scale.repeat_interleave(after.shape[1] // len(scale))
        after.div_(columns.view(1, -1, *[1] * (after.ndim - 2)))
    return twin


def same_function(model: nn.Module, other: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(inputs), model.eval()(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_rescaled_twin_has_the_same_weights(kind: str) -> None:
    model = mlp() if kind == "mlp" else conv()
    joints = [(0, 2), (2, 4)] if kind == "mlp" else [(5, 8)]
    inputs = torch.randn(7, 6) if kind == "mlp" else torch.randn(7, 1, 8, 8)
    twin = rescaled(model, joints)
    same_function(model, twin, inputs)
    assert not torch.allclose(model[joints[0][0]].weight, twin[joints[0][0]].weight, rtol=0.1)
    one, other = canonicalise(model), canonicalise(twin)
    same_function(model, one.model, inputs)
    assert one.weights.keys() == other.weights.keys() and not one.skipped
    for name, weight in one.weights.items():
        torch.testing.assert_close(other.weights[name], weight, rtol=1e-6, atol=1e-7)


def test_units_are_balanced() -> None:
    model = canonicalise(mlp())
    first, second = model.weights["0.weight"], model.weights["2.weight"]
    bias = model.model.get_parameter("0.bias").detach().double()
    incoming = first.square().sum(1) + bias.square()
    torch.testing.assert_close(incoming, second.square().sum(0), rtol=1e-5, atol=0)
    assert sum(w.square().sum() for w in model.weights.values()) < sum(
        w.square().sum() for name, w in mlp().named_parameters() if "weight" in name
    )


def test_a_batch_norm_is_folded() -> None:
    model = conv()
    found = canonicalise(model)
    assert found.folded == ("1",)
    same_function(model, found.model, torch.randn(5, 1, 8, 8))
    # Scaling in front of a batch norm with fresh statistics is a symmetry as well.
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.mul_(5.0), twin[0].bias.mul_(5.0)
        twin[1].running_mean.mul_(5.0), twin[1].running_var.mul_(25.0)
    twin[1].eps *= 25.0
    for name, weight in canonicalise(twin).weights.items():
        torch.testing.assert_close(weight, found.weights[name], rtol=1e-5, atol=1e-7)


def test_the_gain_of_a_layer_norm_is_folded() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4, bias=False)
            nn.init.uniform_(self.norm.weight, 0.5, 2.0)
            nn.init.uniform_(self.norm.bias)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
            return y

    torch.manual_seed(0)
    block = Block()
    found = canonicalise(block)
    same_function(block, found.model, torch.randn(9, 4))
    assert found.folded == ("norm",) and found.rescaled == (("up", "down"),)
    assert bool((found.model.get_parameter("norm.weight") == 1).all())


def test_dead_units_go_and_what_they_fed_too() -> None:
    model = mlp()
    with torch.no_grad():
        model[4].weight[:, 2] = 0.0  # nobody reads it
        model[0].weight[5] = 0.0  # reads nothing: says relu(bias)
        model[0].bias[5] = 0.7
        model[2].weight[:, 7] = 0.0
        model[2].weight[2, 3] = 4.0
    found = canonicalise(model)
    same_function(model, found.model, torch.randn(20, 6))
    assert dict(found.dropped) == {"0": 2, "2": 1}
    assert [tuple(w.shape) for w in found.weights.values()] == [(14, 6), (11, 14), (3, 11)]
    assert all(bool((weight != 0).any(1).all()) for weight in found.weights.values())


def test_death_spreads_backwards() -> None:
    model = mlp()
    with torch.no_grad():
        model[4].weight[:, :6] = 0.0
        model[2].weight[6:, :10] = 0.0  # units 0..9 are read only by units that nobody reads
    assert dict(canonicalise(model).dropped) == {"0": 10, "2": 6}


def test_a_constant_doesnt_cross_padding() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].bias[1] = 1.0  # 1 inside, 0 in the padding: no constant to the next layer
        model[0].weight[2] = 0.0
        model[0].bias[2] = -1.0  # relu: 0 everywhere
    found = canonicalise(model)
    same_function(model, found.model, torch.randn(4, 1, 6, 6))
    assert dict(found.dropped) == {"0": 1}


@pytest.mark.parametrize("act", [nn.Tanh(), nn.GELU(), nn.Sigmoid()])
def test_other_activations_arent_rescaled_but_dead_units_go(act: nn.Module) -> None:
    model: Any = nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight[1] = 0.0
    found = canonicalise(model)
    same_function(model, found.model, torch.randn(8, 3))
    assert found.rescaled == () and dict(found.dropped) == {"0": 1}
    assert found.skipped["0"] == "'1' beside it isn't positively homogeneous"


class Awkward(nn.Module):
    """Layers that must be left alone, for each its own reason."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.tied = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.c.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.twice, self.end = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        h = self.b(h) + h  # two readers
        h = torch.relu(self.tied(torch.relu(self.c(h))))
        h = torch.relu(self.normed(h))
        y: Tensor = self.end(torch.relu(self.twice(torch.relu(self.twice(h)))))
        return y


def test_what_isnt_safe_is_left_alone_and_said() -> None:
    torch.manual_seed(0)
    model = Awkward()
    found = canonicalise(model)
    same_function(model, found.model, torch.randn(9, 4))
    assert found.rescaled == ()
    assert set(found.skipped) == {"a", "b", "c", "tied", "normed", "twice", "end"}
    assert found.skipped["tied"] == "grouped, tied, parametrised, or called more than once"


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x if x.sum() > 0 else -x)
        return y


def test_a_model_that_cant_be_traced_is_read_by_its_sequentials() -> None:
    model = Branching()
    found = canonicalise(model)
    same_function(model, found.model, torch.randn(9, 4))
    assert found.rescaled == (("net.0", "net.1.1"), ("net.1.1", "net.3"))
    assert found.found.startswith("nn.Sequential")


class OverTime(nn.Module):
    """Linear layers along positions, flattened: a unit's columns don't lie side by side there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)).flatten(1))
        return y


def test_flattened_positions_arent_mistaken_for_channels() -> None:
    model = OverTime()
    with torch.no_grad():
        model.a.weight.mul_(torch.tensor([[1.0], [9.0], [0.1], [3.0]]))
    found = canonicalise(model)
    same_function(model, found.model, torch.randn(6, 5, 3))
    assert found.rescaled == ()


def test_the_model_itself_isnt_touched() -> None:
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())
    canonicalise(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'0.weight' must be finite"):
        canonicalise(model)
