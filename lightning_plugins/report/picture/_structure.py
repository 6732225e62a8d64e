"""The lens over depth, the circuit, the weights and their graph."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from legibility.lightning_plugins.foundation._trees import whole
from legibility.lightning_plugins.report._queries import Subject
from legibility.lightning_plugins.report.choice._further import Seen
from legibility.lightning_plugins.report.choice._layers import activations, factor, through
from legibility.lightning_plugins.report.choice._readings import some_rows
from legibility.lightning_plugins.report.picture._grids import coarse, coarse_mean, grid_of
from legibility.lightning_plugins.sparsity.weights._weights import penalisable_weights
from legibility.scores import Circuit, LensProfile, canonicalise, modularity
from legibility.tradeoff import ScoreEntry
from legibility.tradeoff.model_page import CircuitPicture, GraphPicture, LensPicture, MaskPicture, WeightPicture

_MATRICES = 32
_EDGES = 500
_UNITS = 64  # of a column of the graph
_BINS = 41


def lens_picture(seen: Seen, found: object | None, why_not: str | None) -> LensPicture:
    """The lens over depth: as it was measured, or the plain one alone, which costs a call of the head for each layer.

    Raises:
        ValueError: There is no stream of one width, or no head.
    """
    if isinstance(found, LensProfile) and found.layers:
        depths = found.layers.values()
        return LensPicture(
            layers=list(found.layers),
            logit_kl=[round(depth.logit_kl, 4) for depth in depths],
            tuned_kl=[round(depth.tuned_kl, 4) for depth in depths],
            information=round(found.information, 4),
        )
    if isinstance(found, LensProfile):
        raise ValueError(found.reason or "the lens has no layer")  # noqa: TRY004 - of the right type, and empty
    material = seen.material
    assert material is not None and material.model is not None
    if not seen.views.layers.blocks:
        raise ValueError("no residual stream: no list of blocks was found")
    if seen.views.no_head is not None:
        raise ValueError(seen.views.no_head)
    rows = some_rows(material)
    said = activations(material, seen.views.layers.names, rows)
    if len({tensor.shape for tensor in said.values()}) != 1 or len(said) < 2:
        raise ValueError("no residual stream: the blocks are of different widths")
    counted, real = material.queries.counted[rows], material.queries.logits[rows].double()
    read = through(material.model, seen.views.head)
    scale = factor(read(said[list(said)[-1]]), real)
    log_p = real[counted].log_softmax(-1)
    marginal = log_p.logsumexp(0) - math.log(len(log_p))
    kl = {name: _bits(log_p, (read(tensor) * scale).double()[counted].log_softmax(-1)) for name, tensor in said.items()}
    layers = list(said)[:-1]
    return LensPicture(
        layers=layers,
        logit_kl=[round(kl[name], 4) for name in layers],
        tuned_kl=[],
        information=round(_bits(log_p, marginal.expand_as(log_p)), 4),
        why_not_tuned=why_not,
    )


def _bits(log_p: Tensor, log_q: Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) / math.log(2)


def circuit_picture(found: Circuit, entry: ScoreEntry | None) -> CircuitPicture:
    """What stays at 90 %, layer by layer."""
    layers = []
    for name, mask in found.masks.items():
        values = mask.cpu().float()
        grid = values.reshape(1, -1) if values.ndim == 1 else values
        if len(grid) == 1:  # nodes in rows of 64: of an image's pixels a picture
            width = math.isqrt(grid.numel())
            width = width if width * width == grid.numel() and width > 3 else min(64, grid.numel())
            padded = torch.nn.functional.pad(grid.flatten(), (0, -grid.numel() % width), value=-1.0)
            grid = padded.reshape(-1, width)
        else:
            grid = coarse_mean(grid)
        layers.append(MaskPicture(name or "the model", int(mask.sum()), mask.numel(), grid_of(grid, 1.0)))
    return CircuitPicture(
        granularity=found.granularity,
        size_90=found.size_90,
        size_99=found.size_99,
        control=None if entry is None else entry.controls.get("random-init"),
        live=found.live,
        curve=[[float(size), round(fidelity, 4)] for size, fidelity in found.curve],
        layers=layers,
    )


def weight_pictures(subject: Subject) -> list[WeightPicture]:
    """How each matrix is filled; of more than 32 the largest."""
    weights = penalisable_weights(subject.primary)
    kept = sorted(weights, key=lambda name: -weights[name].numel())[:_MATRICES]
    return [_weight(name, whole(weight.detach()).float().cpu()) for name, weight in weights.items() if name in kept]


def _weight(name: str, weight: Tensor) -> WeightPicture:
    matrix = weight.flatten(1)
    largest = float(matrix.abs().max())
    nonzero = matrix[matrix != 0]
    counts = torch.histc(nonzero, _BINS, -largest, largest) if largest > 0 else torch.zeros(_BINS)
    return WeightPicture(
        name=name,
        shape=list(weight.shape),
        zeros=float((matrix == 0).double().mean()),
        largest=largest,
        counts=counts.long().tolist(),
        grid=grid_of(coarse(matrix), largest),
    )


def graph_picture(seen: Seen, scores: Mapping[str, ScoreEntry]) -> GraphPicture:
    """The strongest weights of the largest run of layers, clustered.

    Raises:
        ValueError: No two layers follow one another.
        ImportError: Without networkx.
    """
    assert seen.material is not None and seen.material.model is not None
    found = canonicalise(seen.material.model)
    sizes = {name.removesuffix(".weight"): weight for name, weight in found.weights.items() if weight.numel()}
    after = {one: other for one, other in found.joined if one in sizes and other in sizes}
    runs = []
    for first in sizes:
        if first not in after.values():
            run = [first]
            while run[-1] in after:
                run.append(after[run[-1]])
            runs.append(run)
    names = max(runs, key=lambda run: (len(run) > 1, sum(sizes[name].numel() for name in run)), default=[])
    if len(names) < 2:
        raise ValueError("no two layers follow one another with nothing else in between")
    layers = [_matrix(sizes[name]) for name in names]
    for place in range(1, len(layers)):  # columns of a flattened channel are joined
        units = len(layers[place - 1])
        folded = layers[place].view(len(layers[place]), units, -1)
        strongest = folded.abs().argmax(-1, keepdim=True)
        layers[place] = folded.gather(-1, strongest).squeeze(-1)
    return _graph(["inputs", *names], layers, scores.get("relative_modularity"))


def _matrix(weight: Tensor) -> Tensor:
    weight = weight.cpu().double()
    return weight if weight.ndim == 2 else weight.flatten(2).square().sum(-1).sqrt()


def _graph(names: list[str], layers: list[Tensor], entry: ScoreEntry | None) -> GraphPicture:
    sizes = [layers[0].shape[1], *(len(layer) for layer in layers)]
    # Each layer by its own largest weight, so that none disappears behind another.
    candidates = []
    for column, layer in enumerate(layers):
        scale = float(layer.abs().max())
        flat = layer.abs().flatten()
        top = flat.topk(min(len(flat), max(60, _EDGES // len(layers)))).indices
        for place in top.tolist():
            unit, read = divmod(place, layer.shape[1])
            value = float(layer[unit, read])
            if value != 0.0:
                candidates.append((column, read, unit, value / scale))
    nodes: dict[tuple[int, int], int] = {}
    edges, degree = [], [0] * len(sizes)
    for column, read, unit, value in sorted(candidates, key=lambda edge: -abs(edge[3])):
        new = [key for key in ((column, read), (column + 1, unit)) if key not in nodes]
        if any(degree[place] >= _UNITS for place, _ in new):
            continue
        for key in new:
            nodes[key] = len(nodes)
            degree[key[0]] += 1
        edges.append([nodes[column, read], nodes[column + 1, unit], round(99 * value)])
    edges = [edge for edge in edges if edge[2] != 0]
    graph = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    for one, other, weight in edges:
        graph[one, other] = graph[other, one] = abs(weight) / 99
    q, places = modularity(graph) if edges else (math.nan, [0] * len(nodes))
    number = {cluster: sum(place == cluster for place in places) for cluster in set(places)}
    order = {c: rank for rank, c in enumerate(sorted(number, key=lambda c: -number[c])) if number[c] > 1}
    return GraphPicture(
        layers=names,
        sizes=sizes,
        nodes=[[column, unit, order.get(places[index], -1)] for (column, unit), index in nodes.items()],
        edges=edges,
        weights=sum(int((layer != 0).sum()) for layer in layers),
        clusters=len(order),
        modularity=round(q, 4) if math.isfinite(q) else None,
        score=None if entry is None else entry.value,
    )
