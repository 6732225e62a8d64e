"""Takes neurons that compute nothing out of a network: a smaller one with equal outputs."""

import copy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.sparsity.structure._neurons import neurons
from legibility.lightning_plugins.sparsity.structure._units import Piece, Units
from legibility.lightning_plugins.sparsity.weights._flat_pieces import refuse_sharded

# Which attributes of a layer say how long its tensors are, along each dimension of the weight.
_SIZES: list[tuple[type[nn.Module], tuple[str, ...]]] = [
    (nn.Linear, ("out_features", "in_features")),
    (nn.modules.conv._ConvNd, ("out_channels", "in_channels")),
    (nn.modules.batchnorm._NormBase, ("num_features",)),
]


class Smaller(NamedTuple):
    """What :func:`remove_dead_neurons` returns.

    Attributes:
        model: The smaller network.
        removed: Layer -> how many of its neurons are gone.
        left: Layer -> why its neurons could not be looked at.
    """

    model: nn.Module
    removed: dict[str, int]
    left: dict[str, str]


def remove_dead_neurons(model: nn.Module) -> Smaller:
    """A smaller copy of a network without the neurons that, as far as its code shows, can't change its outputs.

    A neuron is dead if the layer that reads it has only zeros for it, or if its row and bias are zero and what comes
    behind (activations, pooling, no norm) makes zero of zero. Linear layers, convolutions and batch or instance norms
    are cut; a layer keeps one neuron at least. A layer whose one reader isn't certain (several readers in any mode or
    branch, code that can't be followed, a hook, a layer norm behind it, shared or parametrised weights) stays whole, and
    ``left`` says why. So does a neuron whose row is zero and bias isn't, for it puts out a constant.

    Who reads a layer is seen in the model's code: its ``forward`` and what Lightning calls (``training_step``). Code elsewhere
    that calls a layer by itself, or hooks it later, finds it smaller. A batch norm behind a Linear layer must see
    (batch, units); with three dimensions it norms along another, and the smaller network raises.

    Args:
        model: Not modified. Its ``forward`` is what is kept equal, up to the order of sums (in training mode too, except
            for what dropout draws).

    Returns:
        The smaller model, what was removed, and what was left.

    Raises:
        ValueError: Weights are sharded: gather them first.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> net[2].weight.data[:, :2] = 0
        >>> smaller = remove_dead_neurons(net)
        >>> smaller.model[0], smaller.removed
        (Linear(in_features=3, out_features=2, bias=True), {'0': 2})
    """
    refuse_sharded(model)
    model = copy.deepcopy(model)
    removed: dict[str, int] = {}
    found = neurons(model)
    while True:
        before = sum(removed.values())
        for units in map(_afresh, found):
            kept = _alive(units)
            if len(kept) < units.count:
                removed[units.name] = removed.get(units.name, 0) + units.count - len(kept)
                for piece in (*units.pieces, *units.between):
                    _cut(piece, kept)
        if sum(removed.values()) == before:
            return Smaller(model, removed, found.left_out)


def _afresh(units: Units) -> Units:
    """The same units in the tensors of now: the neurons of another layer may just have gone."""

    def now(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        return tuple(replace(piece, tensor=getattr(piece.owner, piece.attribute)) for piece in pieces)

    return replace(units, incoming=now(units.incoming), outgoing=now(units.outgoing), between=now(units.between))


def _alive(units: Units) -> Tensor:
    alive = torch.stack([piece.squares() != 0 for piece in units.outgoing]).any(0)
    if units.still:
        alive &= torch.stack([piece.squares() != 0 for piece in units.incoming]).any(0)
    return alive.nonzero().flatten() if alive.any() else torch.zeros(1, dtype=torch.long)


def _cut(piece: Piece, kept: Tensor) -> None:
    old = piece.tensor
    new = old.detach().index_select(piece.dim, piece.slices(kept).to(old.device)).clone()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(piece.owner, piece.attribute, new)
    for kind, sizes in _SIZES:
        if isinstance(piece.owner, kind):
            setattr(piece.owner, sizes[piece.dim], new.shape[piece.dim])
