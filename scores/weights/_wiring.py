"""Wiring cost: how long the connections are once the units stand where it is best for them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from legibility.scores._optional import optional
from legibility.scores.weights._canonical import Canonical
from legibility.scores.weights._graph import Layers, adjacency, layered_weights, shuffled

_SWEEPS = 30
MOST_UNITS = 2048


@dataclass(frozen=True)
class WiringCost:
    """What `wiring_cost` found. Values that couldn't be taken are NaN, and `reason` says why.

    Attributes:
        value: `cost / null`, lower = wires are shorter than those of the same weights in other places.
        cost: mean length of the connections, weighted by `|w|`; each layer's units stand evenly on [0, 1].
        null: mean of the same over shuffled weights.
        null_spread: their standard deviation.
        as_given: the cost with units in the model's own order; 1/3 for weights without any order.
        reason: why there is no value.
    """

    value: float = math.nan
    cost: float = math.nan
    null: float = math.nan
    null_spread: float = math.nan
    as_given: float = math.nan
    reason: str | None = None


def wiring_cost(model: nn.Module | Canonical, *, nulls: int = 5, seed: int = 0) -> WiringCost:
    """Mean length of the wires after relabelling the units of every layer, inputs and outputs too.

    The units of a layer stand evenly on a line from 0 to 1, so a wire's length is the difference of two places. Names of
    units mean nothing, so they are moved to where wires are shortest. Placing one layer between fixed neighbours is an
    assignment problem, solved exactly (`scipy`); layers take turns until nothing moves. As a whole that is a heuristic:
    it starts from the spectral order of the graph and ends in a local optimum, for the model and its null alike. Of
    several runs of layers the largest counts.

    Card:
        Range and direction: [0, inf), lower = more local; about 1 for random weights. NaN for weights that are all zero,
        fewer than 2 layers in a run, or layers of more than 2048 units.
        Cost: `1 + nulls` placements, each some assignment problems of the layers' widths.
        Controls: weights shuffled within each layer and relabelled in the same way (inside), for sparse weights have short
        wires by themselves; a random-init model. Within 3 `null_spread` of the null a value says nothing, and
        `structure_scores` gives none.
        Gamed by: blocks that do the same thing. Rescaling and relabelling units changes (next to) nothing.
        Trained on, where a wiring penalty took part.

    Args:
        model: any module, or what `canonicalise` made of it.
        nulls: how many shuffled copies.
        seed: of shuffling.

    Returns:
        the cost and its null.

    Raises:
        ImportError: without scipy (extra `sklearn` brings it).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from legibility.scores import wiring_cost
        >>> net = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9))
        >>> with torch.no_grad():  # every unit reads one other, in disorder
        ...     _ = net[0].weight.copy_(torch.eye(9)[torch.randperm(9)])
        ...     _ = net[2].weight.copy_(torch.eye(9)[torch.randperm(9)])
        >>> found = wiring_cost(net)
        >>> found.cost < 1e-6, found.as_given > 0.05
        (True, True)

    Source: Liu, Gan and Tegmark, "Seeing is believing: brain-inspired modular training", 2023, for the cost.
    """
    runs = layered_weights(model)
    if not runs or len(runs[0]) < 2:
        return WiringCost(reason="no two layers follow one another with nothing else in between")
    layers = max(runs, key=lambda run: sum(weight.numel() for weight in run))
    if not any(bool((weight > 0).any()) for weight in layers):
        return WiringCost(reason="all weights are zero")
    widest = max(max(weight.shape) for weight in layers)
    if widest > MOST_UNITS:
        return WiringCost(reason=f"a layer has {widest} units, {MOST_UNITS} can be placed in reasonable time")
    draw = torch.Generator().manual_seed(seed)
    of_null = torch.tensor([_placed(shuffled(layers, draw)) for _ in range(nulls)], dtype=torch.float64)
    null = float(of_null.mean())
    cost = _placed(layers)
    return WiringCost(
        value=cost / null if null > 0 else math.nan,
        cost=cost,
        null=null,
        null_spread=float(of_null.std()) if nulls > 1 else math.nan,
        as_given=_cost(layers, [_line(n) for n in _sizes(layers)]),
    )


def _sizes(layers: Layers) -> list[int]:
    return [layers[0].shape[1], *(len(weight) for weight in layers)]


def _line(units: int) -> Tensor:
    return torch.linspace(0, 1, units, dtype=torch.float64) if units > 1 else torch.full((1,), 0.5, dtype=torch.float64)


def _cost(layers: Layers, places: list[Tensor]) -> float:
    length = sum(
        float((weight.cpu() * (places[k + 1][:, None] - places[k][None, :]).abs()).sum())
        for k, weight in enumerate(layers)
    )
    return length / sum(float(weight.sum()) for weight in layers)


def _placed(layers: Layers) -> float:
    """The cost after relabelling."""
    assign = optional("scipy.optimize", "Wiring cost").linear_sum_assignment
    sizes = _sizes(layers)
    lines = [_line(size) for size in sizes]
    order = _spectral(layers)
    places, begin = [], 0
    for size, line in zip(sizes, lines, strict=True):
        place = torch.empty(size, dtype=torch.float64)
        place[order[begin : begin + size].argsort(stable=True)] = line
        places.append(place)
        begin += size
    best = _cost(layers, places)
    for _ in range(_SWEEPS):
        for k, line in enumerate(lines):
            price = torch.zeros(sizes[k], sizes[k], dtype=torch.float64)  # of unit u at the line's place p
            if k > 0:
                price += layers[k - 1].cpu() @ (places[k - 1][:, None] - line[None, :]).abs()
            if k < len(layers):
                price += layers[k].cpu().T @ (places[k + 1][:, None] - line[None, :]).abs()
            units, chosen = assign(price.numpy())
            places[k] = torch.empty(sizes[k], dtype=torch.float64)
            places[k][torch.as_tensor(units)] = line[torch.as_tensor(chosen)]
        now = _cost(layers, places)
        if now > best - 1e-9:
            break
        best = now
    return min(best, _cost(layers, places))


def _spectral(layers: Layers) -> Tensor:
    """Each unit's coordinate along the slowest way in which the graph varies (Fiedler), for all layers together."""
    graph = adjacency(layers)
    degree = graph.sum(1)
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(scale[:, None] * graph * scale[None, :])
    # The last vector is the degrees', the one before the first that separates anything.
    found: Tensor = vectors[:, values.argsort()[-2]] * scale
    return found
