"""Relative modularity: do the weights fall into clusters, more than the same weights in other places would?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from legibility.scores._optional import optional
from legibility.scores.weights._canonical import Canonical
from legibility.scores.weights._graph import Layers, adjacency, layered_weights, shuffled

MOST_EDGES = 200_000


@dataclass(frozen=True)
class Modularity:
    """What `relative_modularity` found. Values that couldn't be taken are NaN, and `reason` says why.

    Attributes:
        value: `(Q - Q_null) / (1 - Q_null)`, higher = more modular.
        q: the modularity of the best clustering found.
        q_null: mean of the same over shuffled weights.
        q_null_spread: their standard deviation.
        clusters: number of clusters, isolated units left out.
        reason: why there is no value.
    """

    value: float = math.nan
    q: float = math.nan
    q_null: float = math.nan
    q_null_spread: float = math.nan
    clusters: int = 0
    reason: str | None = None


def relative_modularity(
    model: nn.Module | Canonical, *, nulls: int = 3, restarts: int = 2, seed: int = 0
) -> Modularity:
    """How much more clustered the model's units are than if the same weights lay elsewhere in their layers.

    Units are joined by `|w|` of the canonical weights; `Q` is the modularity of the best of `restarts` Louvain
    clusterings. Of several runs of layers the largest counts. `Q` rises with sparsity alone, so the null shuffles the
    weights within each layer and is clustered in the same way.

    Card:
        Range and direction: (-inf, 1], higher = more modular; about 0 for random weights, sparse ones too unless units die of
        it (they are dropped from the model, not from its null). NaN for weights that are all zero, fewer than 2 layers
        in a run, more than 200 000 weights (Louvain is slow).
        Cost: `restarts (1 + nulls)` clusterings. Controls: shuffled weights (inside), a random-init model. A trained
        network without clusters is where an untrained one is: within 3 `q_null_spread` of the null a value says nothing,
        and `structure_scores` gives none.
        Gamed by: cutting a network into blocks that do the same thing. Rescaling units changes nothing.
        Not trained on, unless a wiring or sparsity term took part; then in part.

    Args:
        model: any module, or what `canonicalise` made of it.
        nulls: how many shuffled copies.
        restarts: clusterings tried for each graph.
        seed: of shuffling and clustering.

    Returns:
        the modularity and its null.

    Raises:
        ImportError: without networkx (extra `graphs`).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from legibility.scores import relative_modularity
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> blocks = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(blocks), net[2].weight.copy_(blocks)
        >>> found = relative_modularity(net)
        >>> round(found.q, 3), found.clusters, found.value > 0.3
        (0.5, 2, True)

    Source: Newman, "Modularity and community structure in networks", 2006; Filan et al., "Clusterability in neural
    networks", 2021, for the null.
    """
    runs = layered_weights(model)
    if not runs or len(runs[0]) < 2:
        return Modularity(reason="no two layers follow one another with nothing else in between")
    layers = max(runs, key=lambda run: sum(weight.numel() for weight in run))
    edges = sum(int((weight > 0).sum()) for weight in layers)
    if edges == 0:
        return Modularity(reason="all weights are zero")
    if edges > MOST_EDGES:
        return Modularity(reason=f"{edges} weights that aren't zero, {MOST_EDGES} can be clustered in reasonable time")
    q, clusters = _best(layers, restarts, seed)
    draw = torch.Generator().manual_seed(seed)
    of_null = torch.tensor([_best(shuffled(layers, draw), restarts, seed)[0] for _ in range(nulls)])
    null = float(of_null.mean())
    return Modularity(
        value=(q - null) / (1 - null) if null < 1 else math.nan,
        q=q,
        q_null=null,
        q_null_spread=float(of_null.std()) if nulls > 1 else math.nan,
        clusters=clusters,
    )


def modularity(graph: Float[Tensor, "nodes nodes"], *, restarts: int = 2, seed: int = 0) -> tuple[float, list[int]]:
    """The best modularity that Louvain finds, and each node's cluster.

    `Q = sum_c [w_c / w - (k_c / 2 w)^2]`, `w` the sum of all edges, `w_c` of those inside a cluster, `k_c` of its
    degrees. Range [-1/2, 1]: `k` disjoint cliques 1 - 1/k, Zachary's karate club .4198.

    Args:
        graph: symmetric, not negative, without loops.
        restarts: clusterings tried.
        seed: of the first one.

    Returns:
        `Q` (NaN without edges) and the clusters' numbers.

    Example:
        >>> import torch
        >>> from legibility.scores import modularity
        >>> cliques = torch.block_diag(*[torch.ones(5, 5) - torch.eye(5)] * 4)
        >>> round(modularity(cliques)[0], 6)  # 1 - 1/4
        0.75
    """
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or not torch.equal(graph, graph.T):
        raise ValueError(f"`graph` must be a symmetric matrix, got {tuple(graph.shape)}.")
    network = _network(graph)
    found = _louvain(network, restarts, seed)
    place = [0] * len(graph)
    for number, members in enumerate(found[1]):
        for node in members:
            place[node] = number
    return found[0], place


def normalised_cut(graph: Float[Tensor, "nodes nodes"], clusters: list[int]) -> float:
    """Sum over clusters of the share of their degree that leaves them; lower = cleaner clusters, 0 to their number.

    Args:
        graph: symmetric, not negative.
        clusters: each node's cluster.

    Returns:
        the cut; clusters without edges count 0.

    Example:
        >>> import torch
        >>> from legibility.scores import normalised_cut
        >>> complete = torch.ones(24, 24) - torch.eye(24)  # in 4: of 23 edges a node, 18 leave
        >>> round(normalised_cut(complete, [node // 6 for node in range(24)]), 4)
        3.1304

    Source: Shi and Malik, "Normalized cuts and image segmentation", 2000.
    """
    exact, labels = graph.double(), torch.tensor(clusters, device=graph.device)
    total = 0.0
    for cluster in sorted(set(clusters)):
        inside = labels == cluster
        volume = float(exact[inside].sum())
        total += float(exact[inside][:, ~inside].sum()) / volume if volume > 0 else 0.0
    return total


def _best(layers: Layers, restarts: int, seed: int) -> tuple[float, int]:
    q, found = _louvain(_network(adjacency(layers)), restarts, seed)
    return q, sum(len(members) > 1 for members in found)


def _network(graph: Tensor) -> Any:
    network = optional("networkx", "Modularity", extra="graphs").Graph()
    network.add_nodes_from(range(len(graph)))
    first, second = torch.triu(graph, 1).nonzero(as_tuple=True)
    weights = graph[first, second].tolist()
    network.add_weighted_edges_from(zip(first.tolist(), second.tolist(), weights, strict=True))
    return network


def _louvain(network: Any, restarts: int, seed: int) -> tuple[float, list[set[int]]]:
    if network.number_of_edges() == 0:
        return math.nan, []
    community = optional("networkx", "Modularity", extra="graphs").community
    best: tuple[float, list[set[int]]] = (-math.inf, [])
    for restart in range(restarts):
        found = community.louvain_communities(network, weight="weight", seed=seed + restart)
        q = float(community.modularity(network, found, weight="weight"))
        if q > best[0]:
            best = q, found
    return best
