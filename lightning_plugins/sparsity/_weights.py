"""Which parameters a sparsity penalty may touch."""

from collections.abc import Sequence

from torch import nn

from legibility.lightning_plugins.foundation._recorder import match_names, plain_name

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def penalisable_weights(root: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that sparsity is about: trainable floating-point matrices and filters, each tied weight once.

    Left out: biases and other 1-D or 0-D parameters, norm layers, embeddings (also when tied to an output layer),
    parametrised weights (the optimizer holds their originals, not what the layer uses), lazy and complex ones.

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
    for module in root.modules():
        if isinstance(module, (*_NORMS, nn.Embedding, nn.EmbeddingBag)) or nn.utils.parametrize.is_parametrized(module):
            excluded |= {id(parameter) for parameter in module.parameters(recurse=False)}
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            excluded |= {id(parameter) for parameter in module.parameters()}
    return {
        plain_name(name): parameter
        for name, parameter in root.named_parameters()
        if id(parameter) not in excluded
        and parameter.requires_grad
        and not isinstance(parameter, nn.parameter.UninitializedParameter)
        and parameter.is_floating_point()
        and parameter.ndim >= 2
    }


def target_weights(
    root: nn.Module, targets: str | Sequence[str], exclude: str | Sequence[str]
) -> dict[str, nn.Parameter]:
    """The penalisable weights whose names match ``targets`` and not ``exclude``.

    Args:
        root: The module to search.
        targets: Shell patterns over parameter names.
        exclude: Patterns to leave out, beyond the default exclusions.

    Raises:
        ValueError: A pattern of ``targets`` or ``exclude`` matches nothing, or nothing is left.
    """
    weights = penalisable_weights(root)
    if not weights:
        raise ValueError(
            "`targets`: the model has no weight to make sparse (trainable matrices or filters outside of embeddings, "
            "norms and parametrised layers)."
        )
    chosen = match_names(targets, weights, "targets")
    left_out = set(match_names(exclude, weights, "exclude")) if exclude else set()
    kept = {name: weights[name] for name in chosen if name not in left_out}
    if not kept:
        raise ValueError(f"`exclude` = {exclude!r} leaves none of the weights that `targets` = {targets!r} chose.")
    return kept
