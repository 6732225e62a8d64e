"""Modularity, wiring cost, and the measures of sparsity, against their analytic values."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from legibility.scores import (
    activation_l0,
    canonicalise,
    gini,
    hoyer,
    modularity,
    normalised_cut,
    path_crosstalk,
    relative_modularity,
    weight_sparsity,
    wiring_cost,
)
from legibility.scores.weights._graph import layered_weights


def mlp(*sizes: int, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for read, written in itertools.pairwise(sizes):
            layers += [nn.Linear(read, written), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def side_by_side(block: Tensor, count: int) -> Tensor:
    return torch.kron(torch.eye(count), block)


@torch.no_grad()
def blocks(count: int, size: int, noise: float = 0.0) -> Any:
    """`count` networks side by side, units in disorder."""
    net = mlp(*[count * size] * 4)
    orders = [torch.randperm(count * size, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    for k, layer in enumerate(net[::2]):
        mask = side_by_side(torch.ones(size, size), count)[orders[k + 1]][:, orders[k]]
        layer.weight.mul_(mask + noise * (1 - mask))
    return net


@torch.no_grad()
def pruned(net: Any, share: float) -> Any:
    for layer in net[::2]:
        threshold = layer.weight.abs().flatten().quantile(1 - share)
        layer.weight[layer.weight.abs() < threshold] = 0.0
    return net


@torch.no_grad()
def rescaled(net: Any) -> Any:
    draw = torch.Generator().manual_seed(5)
    for first, second in zip(net[::2], net[2::2], strict=False):
        scale = 2.0 ** torch.randint(-4, 5, (len(first.weight),), generator=draw)
        first.weight.mul_(scale[:, None]), first.bias.mul_(scale), second.weight.div_(scale)
    return net


def test_karate_club() -> None:
    networkx = pytest.importorskip("networkx")
    club = torch.tensor(networkx.to_numpy_array(networkx.karate_club_graph(), weight=None))
    q, clusters = modularity(club, restarts=10)
    assert q == pytest.approx(0.4198, abs=1e-3)  # the known optimum
    assert len(set(clusters)) == 4


@pytest.mark.parametrize("count", [2, 3, 5])
def test_disjoint_cliques(count: int) -> None:
    cliques = side_by_side(torch.ones(6, 6) - torch.eye(6), count)
    order = torch.randperm(6 * count, generator=torch.Generator().manual_seed(0))
    q, clusters = modularity(cliques[order][:, order])
    assert q == pytest.approx(1 - 1 / count, abs=1e-9)
    assert normalised_cut(cliques[order][:, order], clusters) == 0.0


def test_cut_is_that_of_the_library_and_modularity_that_of_the_formula() -> None:
    networkx = pytest.importorskip("networkx")
    weights = torch.rand(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).triu(1)
    graph = (weights + weights.T) * (weights + weights.T > 0.4)
    network, halves = networkx.from_numpy_array(graph.numpy()), [int(node >= 5) for node in range(12)]
    expected = networkx.normalized_cut_size(network, range(5), range(5, 12), weight="weight")
    assert normalised_cut(graph, halves) == pytest.approx(expected, abs=1e-12)
    # Networkx gives Q, so the formula is the oracle: sum_c [w_c / w - (k_c / 2 w)^2].
    q, clusters = modularity(graph)
    inside = torch.tensor(clusters)[:, None] == torch.tensor(clusters)
    degrees, total = graph.sum(0), graph.sum()
    assert q == pytest.approx(float(((graph - degrees[:, None] * degrees / total) * inside).sum() / total), abs=1e-12)


def test_modularity_by_hand() -> None:
    # Two pairs joined by a third edge: w = 3, in clusters {0,1}, {2,3}: 2 (1/3 - (3/6)^2) = 1/6
    path = torch.zeros(4, 4)
    for a, b in ((0, 1), (1, 2), (2, 3)):
        path[a, b] = path[b, a] = 1.0
    assert modularity(path)[0] == pytest.approx(1 / 6)
    assert normalised_cut(path, [0, 0, 1, 1]) == pytest.approx(2 / 3)
    assert math.isnan(modularity(torch.zeros(3, 3))[0])
    with pytest.raises(ValueError, match="`graph` must be a symmetric matrix"):
        modularity(torch.ones(2, 3))


def test_modularity_rises_with_sparsity_and_the_null_takes_that_off() -> None:
    raw = [relative_modularity(pruned(mlp(32, 48, 48, 10), share), nulls=3) for share in (1.0, 0.2, 0.06)]
    assert raw[0].q < 0.15 < raw[1].q < raw[2].q > 0.45
    assert all(abs(found.value) < 0.1 for found in raw)


def test_blocks_are_found_and_rescaling_changes_nothing() -> None:
    found = relative_modularity(blocks(3, 8))
    assert found.q == pytest.approx(2 / 3, abs=0.02) and found.clusters == 3
    assert found.value > 0.4 and found.q_null + 3 * found.q_null_spread < found.q
    other = relative_modularity(rescaled(blocks(3, 8)))
    assert other.value == pytest.approx(found.value, abs=1e-6)
    mixed = relative_modularity(blocks(3, 8, noise=0.3))
    assert 0 < mixed.value < found.value


def test_wires_of_blocks_are_short() -> None:
    found, mixed, dense = (wiring_cost(net) for net in (blocks(4, 6), blocks(4, 6, noise=0.3), mlp(24, 24, 24, 24)))
    assert found.cost < 0.12 and found.as_given > 0.25  # inside a block of a quarter: a third of it, about .08
    assert found.value < mixed.value < dense.value
    assert dense.value == pytest.approx(1.0, abs=0.1)
    assert wiring_cost(rescaled(blocks(4, 6))).value == pytest.approx(found.value, abs=1e-6)


def test_a_chain_of_neighbours_is_unrolled() -> None:
    """Units that read their three nearest, shuffled: the order comes back, or nearly."""
    net = mlp(20, 20, 20)
    band = torch.tril(torch.triu(torch.ones(20, 20), -1), 1)
    orders = [torch.randperm(20, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    with torch.no_grad():
        for k, layer in enumerate(net[::2]):
            layer.weight.copy_(band[orders[k + 1]][:, orders[k]])
    best = 2 / 3 / 19  # two of three wires are one place long
    found = wiring_cost(net)
    assert found.cost == pytest.approx(best, rel=0.25)
    assert found.as_given > 5 * found.cost


def test_permuting_units_changes_little() -> None:
    net, other = blocks(3, 6, noise=0.1), blocks(3, 6, noise=0.1)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        other[0].weight.copy_(other[0].weight[order]), other[0].bias.copy_(other[0].bias[order])
        other[2].weight.copy_(other[2].weight[:, order])
    assert wiring_cost(other).cost == pytest.approx(wiring_cost(net).cost, rel=0.02)
    assert relative_modularity(other).q == pytest.approx(relative_modularity(net).q, abs=0.02)


def test_what_has_no_value_says_why() -> None:
    empty = mlp(4, 4, 4)
    with torch.no_grad():
        for layer in empty[::2]:
            layer.weight.zero_()
    for found in (relative_modularity(empty), wiring_cost(empty)):
        assert math.isnan(found.value) and found.reason is not None
    alone = nn.Linear(4, 4)
    assert relative_modularity(alone).reason == "no two layers follow one another with nothing else in between"
    assert wiring_cost(nn.Sequential(nn.Linear(4, 3000), nn.ReLU(), nn.Linear(3000, 2))).reason == (
        "a layer has 3000 units, 2048 can be placed in reasonable time"
    )


def test_layers_of_a_convolution_join() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5))
    (run,) = layered_weights(net)
    assert [tuple(weight.shape) for weight in run] == [(4, 1), (5, 4)]
    weights = canonicalise(net).weights
    expected = weights["3.weight"][2, 9:18].square().sum().sqrt()
    assert run[1][2, 1].item() == pytest.approx(expected.item(), rel=1e-4)  # 16 bits


def quantiles(count: int = 200_000) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_hoyer_of_known_distributions() -> None:
    assert hoyer(torch.special.ndtri(quantiles(1_000_000))).item() == pytest.approx(
        1 - math.sqrt(2 / math.pi), abs=2e-3
    )
    gaussian = torch.special.ndtri(quantiles(10_000_000))
    assert hoyer(gaussian).item() == pytest.approx(0.2021, abs=5e-4)
    tenth = torch.zeros(100)
    tenth[:10] = -0.3
    assert hoyer(tenth).item() == pytest.approx(0.7597, abs=5e-5)
    assert hoyer(torch.tensor([0.0, 1.0, 3.0])).item() == pytest.approx(0.6381, abs=5e-5)
    assert hoyer(torch.tensor([0.0, 0.0, 7.0])).item() == pytest.approx(1.0)
    assert hoyer(torch.ones(9)).item() == pytest.approx(0.0, abs=1e-12)


def test_hoyer_depends_on_width_where_gini_doesnt() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert abs(hoyer(values.repeat(20)).item() - hoyer(values).item()) > 0.01
    assert gini(values.repeat(20)).item() == pytest.approx(gini(values).item(), rel=1e-9)


def test_hoyer_edges() -> None:
    assert hoyer(torch.zeros(4)).isnan()
    assert hoyer(torch.tensor([1e-30, 1e-30])).item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="`values` must hold at least two elements"):
        hoyer(torch.tensor([1.0]))
    with pytest.raises(TypeError, match="`values` must be a floating point tensor"):
        hoyer(torch.tensor([1, 2]))


def test_activation_l0() -> None:
    rows = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1e-9], [1.0, 3.0, 0.0], [0.0, 1.0, 0.0]])
    assert activation_l0(rows) == pytest.approx(5 / 12)
    assert activation_l0(rows * torch.tensor([1.0, 1e3, 1e9])) == activation_l0(rows)
    mask = torch.tensor([True, False, False, True])
    assert activation_l0(rows, mask=mask) == pytest.approx(2 / 6)
    noisy = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0))
    assert activation_l0(noisy, threshold=1.0) == pytest.approx(0.3173, abs=0.01)  # beyond one sigma
    assert math.isnan(activation_l0(torch.zeros(4, 3)))
    with pytest.raises(ValueError, match="`threshold` must be at least 0"):
        activation_l0(rows, threshold=-1.0)
    with pytest.raises(ValueError, match="`activations` must hold at least one position"):
        activation_l0(rows, mask=torch.zeros(4, dtype=torch.bool))


def test_sparsity_of_canonical_weights_doesnt_change_with_rescaling() -> None:
    one, other = (
        weight_sparsity(canonicalise(net).weights.items()) for net in (mlp(8, 12, 5), rescaled(mlp(8, 12, 5)))
    )
    assert other.gini == pytest.approx(one.gini, abs=1e-6) and other.active == pytest.approx(one.active, abs=1e-6)
    raw = [
        weight_sparsity((n, w) for n, w in net.named_parameters() if w.ndim > 1)
        for net in (mlp(8, 12, 5), rescaled(mlp(8, 12, 5)))
    ]
    assert abs(raw[0].gini - raw[1].gini) > 0.05


def crossing(outputs_of_unit: Tensor) -> Any:
    """Four inputs, each read by one unit; units speak to outputs as given, (outputs, units)."""
    net: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
        net[2].weight.copy_(outputs_of_unit)
    return net


def test_crosstalk_by_hand() -> None:
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert path_crosstalk(crossing(torch.eye(4)), inputs).crosstalk == 0.0
    assert path_crosstalk(crossing(torch.ones(4, 4)), inputs).crosstalk == pytest.approx(1.0)
    # Each unit speaks to two of four: 1/2 of the pairs of paths end at different outputs, of 3/4 at most.
    pairs = side_by_side(torch.ones(2, 2), 2)
    assert path_crosstalk(crossing(pairs), inputs).crosstalk == pytest.approx(2 / 3)


def test_crosstalk_counts_paths_only_while_their_units_are_at_work() -> None:
    net = crossing(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]))
    with torch.no_grad():
        net[0].weight[1] = net[0].weight[2] = torch.eye(4)[1]  # input 1 speaks through 1 and 2
    inputs = torch.zeros(64, 4)
    inputs[:, [0, 3]] = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    both = path_crosstalk(net, inputs)
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([0.0, 0.0, -5.0, 0.0]))  # unit 2 never is at work now
    assert both.crosstalk > 0.1 and path_crosstalk(net, inputs).crosstalk == pytest.approx(0.0, abs=1e-12)


def test_crosstalk_of_rescaled_dropped_and_flattened_units() -> None:
    images = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: Any = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
        )
    found = path_crosstalk(net, images)
    assert 0 < found.crosstalk < 1 and 0 < found.null_lowest <= found.null <= 1
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin[0].weight.mul_(8.0), twin[0].bias.mul_(8.0), twin[3].weight.div_(8.0)
    assert path_crosstalk(twin, images).crosstalk == pytest.approx(found.crosstalk, abs=1e-6)
    with torch.no_grad():
        net[5].weight[:, 2:] = 0.0  # six of eight units are read by nobody
        net[3].weight[:, :4] = 0.0  # nor is a channel
    assert 0 < path_crosstalk(net, images).crosstalk <= 1
    with torch.no_grad():
        net[5].weight.zero_()
    assert math.isnan(path_crosstalk(net, images).value) and path_crosstalk(net, images).reason
    assert path_crosstalk(nn.Linear(4, 3), images[:, 0, 0]).reason.startswith("no two layers follow")


def test_crosstalk_looks_at_the_units_of_its_own_run() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = mlp(2, 4, 4), mlp(4, 4, 4)  # as many units, fewer inputs

        def forward(self, rows: Tensor) -> Any:
            return self.small(rows[:, :2]) + self.large(rows)

    inputs, model = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), Branches()
    with torch.no_grad():
        model.small[0].bias.add_(9.0)  # always at work
    both, alone = path_crosstalk(model, inputs), path_crosstalk(model.large, inputs)
    assert alone.unit_activity < 0.9
    assert both == alone
