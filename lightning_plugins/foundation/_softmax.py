"""Whether a loss takes an output for logits: told by the autograd graph between them, not by guessing from the batch."""

from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from legibility.lightning_plugins.foundation._ledger import edges_under

# Nodes that normalise over classes, or take what is normalised already for logarithms of probabilities.
_NORMALISING = ("LogSoftmax", "Softmax", "Logsumexp", "NllLoss", "CtcLoss")
# Nodes after which logits are still logits: moved, cut, cast, masked, shifted, scaled by a constant.
_PASSING = (
    "View", "UnsafeView", "ReshapeAlias", "Transpose", "T", "Permute", "Squeeze", "Unsqueeze", "Expand", "Select", "Slice",
    "Index", "IndexSelect", "Narrow", "Split", "SplitWithSizes", "Unbind", "Cat", "Stack", "Clone", "Alias", "ToCopy",
    "MaskedFill", "Where", "Add", "Sub", "Mul", "Div", "AsStrided",
)  # fmt: skip
_SCALING = ("Mul", "Div")


def softmaxed(output: Tensor, loss: Tensor) -> bool | None:
    """Whether the loss normalises the output over its entries, as a cross-entropy does.

    Args:
        output: What a model returned, in the loss's graph.
        loss: Of the task.

    Returns:
        True or False; None where the graph can't tell: the loss does not depend on the output, or what is done with it
        is hidden in a compiled graph or in somebody's own autograd Function.

    Example:
        >>> import torch
        >>> output, classes = torch.zeros(4, 3, requires_grad=True) * 1, torch.zeros(4, dtype=torch.long)
        >>> softmaxed(output, torch.nn.functional.cross_entropy(output / 0.5, classes))
        True
        >>> softmaxed(output, output.square().mean())
        False
        >>> softmaxed(output, torch.ones(1, requires_grad=True).sum()) is None
        True
    """
    if not output.requires_grad:
        return None
    edge = get_gradient_edge(output)
    same = {(edge.node, edge.output_nr)}  # the output, and whatever is still its logits
    verdict: bool | None = None
    consumers = _consumers(loss)
    waiting = list(same)
    while waiting:
        for node in consumers.get(waiting.pop(), ()):
            kind = type(node).__name__.split("Backward")[0]
            if kind in _NORMALISING or kind.startswith("NllLoss"):
                return True
            if kind in _PASSING and not (kind in _SCALING and _operands(node) > 1):
                new = [after for after in consumers if after[0] is node and after not in same]
                same |= set(new)
                waiting += new
            elif _is_opaque(node):
                return None
            else:
                verdict = False
    return verdict


def _consumers(loss: Tensor) -> dict[tuple[Any, int], list[Any]]:
    """Edge -> the nodes whose backward pass leads to it."""
    found: dict[tuple[Any, int], list[Any]] = {}
    seen = set()
    for node, _ in edges_under(loss):
        if node in seen:
            continue
        seen.add(node)
        for after in node.next_functions:
            if after[0] is not None:
                found.setdefault(after, []).append(node)
    return found


def _operands(node: Any) -> int:
    return sum(after[0] is not None for after in node.next_functions)


def _is_opaque(node: Any) -> bool:
    # Functions written in Python are instances of a class of their own; those of torch.compile too.
    return hasattr(node, "_forward_cls") or "Compiled" in type(node).__name__
