"""A model's weights as one graph: units are joined by the size of the weight between them."""

import torch
from torch import Tensor, nn

from legibility.scores.weights._canonical import Canonical, canonicalise

Layers = list[Tensor]


def layered_weights(model: nn.Module | Canonical) -> list[Layers]:
    """Runs of layers in which each reads the units of the one before: `[(units, inputs), (units, units), ...]`.

    From the canonical weights: sizes, float64, convolution kernels by their norm; columns of a flattened channel are
    joined by their norm too. Layers that no chain holds stand alone. Runs of one layer are left out if there is a longer
    one, for a single layer has no inner units.

    Args:
        model: any module, or what `canonicalise` made of one.

    Returns:
        the runs, in the model's order.
    """
    found = model if isinstance(model, Canonical) else canonicalise(model)
    return [list(run.values()) for run in named_runs(found)]


def named_runs(found: Canonical) -> list[dict[str, Tensor]]:
    """The runs of `layered_weights`, each layer by its name, from the inputs on."""
    sizes = {
        name.removesuffix(".weight"): weight.abs() if weight.ndim == 2 else weight.flatten(2).square().sum(-1).sqrt()
        for name, weight in found.weights.items()
        if weight.numel()
    }
    after = {first: second for first, second in found.joined if first in sizes and second in sizes}
    runs = []
    for first, start in sizes.items():
        if first in after.values():
            continue
        run, name = {first: start}, first
        while name in after:
            units = len(run[name])
            name = after[name]
            weight = sizes[name]
            run[name] = weight.view(len(weight), units, -1).square().sum(-1).sqrt()
        runs.append(run)
    longer = [run for run in runs if len(run) > 1]
    return [{name: _without_rounding(weight) for name, weight in run.items()} for run in longer or runs]


def _without_rounding(weight: Tensor) -> Tensor:
    """Cut to 16 bits: ties between clusterings must not be decided by what balancing left in the last digits."""
    mantissa, exponent = torch.frexp(weight)
    return torch.ldexp((mantissa * 2**16).round() / 2**16, exponent)


def shuffled(layers: Layers, generator: torch.Generator) -> Layers:
    """The same weights in other places, each within its layer."""
    return [
        weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view(weight.shape) for weight in layers
    ]


def adjacency(layers: Layers) -> Tensor:
    """The graph of a run: inputs, then the units of each layer; symmetric, float64."""
    sizes = [layers[0].shape[1], *(len(weight) for weight in layers)]
    total = sum(sizes)
    grid = torch.zeros(total, total, dtype=torch.float64)
    begin = 0
    for weight, size in zip(layers, sizes[:-1], strict=True):
        stop = begin + size
        grid[stop : stop + len(weight), begin:stop] = weight.cpu()
        grid[begin:stop, stop : stop + len(weight)] = weight.cpu().T
        begin = stop
    return grid
