"""Which parameters a sparsity penalty may touch."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from legibility.lightning_plugins.foundation._names import match_names, plain_name
from legibility.lightning_plugins.sparsity.weights._flat_pieces import Cut, cuts

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_EMBEDDED = re.compile(r"^(pos|cls)(_|$|ition)|embed", re.IGNORECASE)
_OLD = (WeightNorm, SpectralNorm)


def penalisable_weights(root: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that sparsity is about: trainable floating-point matrices and filters, each tied weight once.

    Left out: biases and other 1-D or 0-D parameters, norm layers, embeddings (also when tied to an output layer; and
    parameters that a module holds itself in the place of one: of a shape (1, ..., d), or called "pos...", "cls..." or
    "...embed...", such as ``pos_embed`` and ``cls_token``),
    low-rank adapters (zeros in a factor are no zeros in the weight), parametrised weights (the optimizer holds their
    originals, not what the layer uses; ``torch.nn.utils.weight_norm`` and ``spectral_norm`` of old too), lazy and complex
    ones. A weight under ``torch.nn.utils.prune`` is taken: its zeros are the layer's.

    Args:
        root: The module to search.

    Returns:
        Name -> parameter, names without wrappers' prefixes.

    Example:
        >>> net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
        >>> list(penalisable_weights(net))
        ['1.weight']
    """
    excluded: set[int] = set()
    cut = cuts(root)
    for module in root.modules():
        if isinstance(module, (*_NORMS, *_EMBEDDINGS)) or nn.utils.parametrize.is_parametrized(module):
            excluded |= {id(parameter) for parameter in module.parameters(recurse=False)}
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            excluded |= {id(parameter) for parameter in module.parameters()}
        excluded |= {id(parameter) for parameter in _hooked(module)} | _embedded(module, cut)
    return {
        plain_name(name): parameter
        for name, parameter in root.named_parameters()
        if id(parameter) not in excluded
        and not _is_adapter(name)
        and parameter.requires_grad
        and not isinstance(parameter, nn.parameter.UninitializedParameter)
        and parameter.is_floating_point()
        and _dimensions(parameter, cut) >= 2
    }


def target_weights(
    root: nn.Module, targets: str | Sequence[str], exclude: str | Sequence[str]
) -> dict[str, nn.Parameter]:
    """The penalisable weights whose names match ``targets`` and not ``exclude``.

    An embedding or a low-rank adapter is taken if it is named in full, without wildcards.

    Args:
        root: The module to search.
        targets: Shell patterns over parameter names.
        exclude: Patterns to leave out, beyond the default exclusions.

    Raises:
        ValueError: A pattern of ``targets`` or ``exclude`` matches nothing, names a parametrised weight, or nothing is
            left.
    """
    if not targets:
        raise ValueError("`targets` is empty: give patterns over parameter names, or leave it out.")
    _refuse_parametrised(root, targets)
    weights = penalisable_weights(root)
    weights |= _named_in_full(root, targets, weights)
    if not weights:
        adapters = [name for name, p in root.named_parameters() if p.requires_grad and _is_adapter(name)]
        raise ValueError(
            "`targets`: the model has no weight to make sparse (trainable matrices or filters outside of embeddings, "
            "norms, parametrised layers and low-rank adapters)."
            + (f" Adapters such as {adapters[0]} are taken if named in full." if adapters else "")
        )
    chosen = match_names(targets, weights, "targets")
    left_out = set(match_names(exclude, weights, "exclude")) if exclude else set()
    kept = {name: weights[name] for name in chosen if name not in left_out}
    if not kept:
        raise ValueError(f"`exclude` = {exclude!r} leaves none of the weights that `targets` = {targets!r} chose.")
    return kept


def _embedded(module: nn.Module, cut: dict[int, Cut]) -> set[int]:
    """The ids of position embeddings, class tokens and the like: added to each example, they are no matrices."""
    if type(module).__module__.startswith("torch."):
        return set()
    return {
        id(parameter)
        for name, parameter in module._parameters.items()
        if parameter is not None
        and not isinstance(parameter, nn.parameter.UninitializedParameter)
        and (_EMBEDDED.search(name) or ((shape := _shape(parameter, cut)) and len(shape) > 2 and shape[0] == 1))
    }


def _shape(parameter: nn.Parameter, cut: dict[int, Cut]) -> torch.Size:
    return cut[id(parameter)].shape if id(parameter) in cut else parameter.shape


def _dimensions(parameter: nn.Parameter, cut: dict[int, Cut]) -> int:
    return len(_shape(parameter, cut))


def _refuse_parametrised(root: nn.Module, targets: str | Sequence[str]) -> None:
    """Says why, where a weight is asked for by its full name that the layer computes from others."""
    asked = {targets} if isinstance(targets, str) else set(targets)
    for path, module in root.named_modules():
        computed = list(getattr(module, "parametrizations", ())) if nn.utils.parametrize.is_parametrized(module) else []
        computed += [hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, _OLD)]
        named = plain_name(path)
        for name in computed:
            full = f"{named}.{name}" if named else name
            if any(one == full or one.startswith((f"{full}_", _original(named, name))) for one in asked):
                raise ValueError(
                    f"`targets`: {full} is parametrised: the layer computes it from other tensors, so zeros that a step "
                    "writes would not be the layer's. Remove the parametrisation "
                    "(`torch.nn.utils.parametrize.remove_parametrizations`) or name other weights."
                )


def _original(path: str, name: str) -> str:
    return f"{path}.parametrizations.{name}." if path else f"parametrizations.{name}."


def _hooked(module: nn.Module) -> list[Tensor]:
    """Parameters from which a hook of the old kind computes the weight before each call."""
    names = [hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, _OLD)]
    parameters = [module._parameters.get(f"{name}_{part}") for name in names for part in ("g", "v", "orig")]
    return [parameter for parameter in parameters if parameter is not None]


def embedding_weights(root: nn.Module) -> set[int]:
    """The ids of all embeddings' weights."""
    return {id(module.weight) for module in root.modules() if isinstance(module, _EMBEDDINGS)}


def _is_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _named_in_full(
    root: nn.Module, targets: str | Sequence[str], known: dict[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    asked = {targets} if isinstance(targets, str) else set(targets)
    cut, embeddings, taken = cuts(root), embedding_weights(root), {id(parameter) for parameter in known.values()}
    embedded = set().union(*(_embedded(module, cut) for module in root.modules()))
    return {
        plain_name(name): parameter
        for name, parameter in root.named_parameters()
        if plain_name(name) in asked
        and id(parameter) not in taken
        and (id(parameter) in embeddings or _is_adapter(name) or id(parameter) in embedded)
        and parameter.requires_grad
        and parameter.is_floating_point()
        and _dimensions(parameter, cut) >= 2
    }


def local(weight: Tensor) -> Tensor:
    """What this rank holds of a weight: what is written to it is written to the weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def summed(weight: Tensor) -> Tensor:
    """The sum of a whole weight; of one that is sharded, all ranks must ask."""
    total = weight.sum()
    return total.full_tensor() if isinstance(total, DTensor) else total


def rows_without_gradient(parameter: nn.Parameter, cut: Cut | None = None) -> tuple[Tensor, Tensor]:
    """Where an embedding's weight has rows that this step's batch did not ask for, and what they hold.

    Rare tokens would otherwise be pulled to zero by steps in which they had no say. Of a sharded weight all ranks must ask;
    each gets what is to be kept of its own piece.
    """
    gradient, held = parameter.grad, local(parameter.detach())
    others = tuple(range(1, parameter.ndim if cut is None else len(cut.shape)))
    if cut is not None:
        block = cut.block(held.new_zeros(held.shape) if gradient is None else gradient)
        asked = cut.total(block.abs().sum(others), 0) > 0
        rows = cut.part(~asked.view(-1, *(1 for _ in others)))
    elif gradient is None:
        rows = torch.zeros(len(held), dtype=torch.bool, device=held.device)
    elif gradient.is_sparse:
        rows = torch.ones(len(held), dtype=torch.bool, device=held.device)
        rows[gradient.coalesce().indices()[0]] = False
    else:
        sums = gradient.abs().sum(others)
        if isinstance(sums, DTensor):  # columns may be on other ranks
            whole = [Replicate() if placement.is_partial() else placement for placement in sums.placements]
            sums = sums.redistribute(placements=whole).to_local()
        rows = sums == 0
    return rows, held[rows].clone()
