"""How large parameters are, wherever their elements lie."""

from typing import Any

from torch import nn

from legibility.scores.flat_weights import wraps_flat


def outermost(pl_module: nn.Module) -> nn.Module:
    """What the strategy made of a LightningModule: under FSDP1 the wrapper around it, which holds weights of all."""
    trainer: Any = getattr(pl_module, "_trainer", None)
    made = None if trainer is None else trainer.strategy.model
    return made if made is not None and wraps_flat(made) else pl_module


def whole_sizes(root: nn.Module) -> dict[int, int]:
    """Elements of each parameter below the root by its id: under FSDP1 of the whole one, not of this rank's piece.

    Of a part of a model, the wrappers around it don't count, which have gathered it whenever it is called. Lazy parameters,
    which have no size yet, are left out.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> whole_sizes(layer)[id(layer.weight)]
        6
    """
    sizes = {id(p): p.numel() for p in root.parameters() if not nn.parameter.is_lazy(p)}
    for module in root.modules():
        handle: Any = module._handle if wraps_flat(module) else None
        if handle is not None:
            flat = handle.flat_param
            lengths = [shape.numel() for shape in flat._shapes]
            # Without names (`use_orig_params=False`) there is one vector instead of the parameters.
            named = [(flat, sum(lengths))] if flat._params is None else zip(flat._params, lengths, strict=True)
            sizes |= {id(p): length for p, length in named if id(p) in sizes}
    return sizes
