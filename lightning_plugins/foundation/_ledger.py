"""Which recorded calls' penalties a loss is still owed, where the user runs several backward passes in one step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from legibility.lightning_plugins.foundation._injector import Penalty

_Edge = tuple[Any, int]  # a node of the autograd graph and which of its outputs


def edges_under(tensor: Tensor) -> Iterator[_Edge]:
    """The edges of the autograd graph that a tensor's backward pass follows, its own first, each once.

    Example:
        >>> import torch
        >>> leaf = torch.ones(2, requires_grad=True)
        >>> [type(node).__name__ for node, _ in edges_under(leaf.sum())]
        ['SumBackward0', 'AccumulateGrad']
        >>> list(edges_under(torch.ones(2)))
        []
    """
    if not tensor.requires_grad:
        return
    own = get_gradient_edge(tensor)
    stack: list[_Edge] = [(own.node, own.output_nr)]
    seen = set(stack)  # holds on to the nodes: their Python objects are one only while somebody does
    while stack:
        edge = stack.pop()
        yield edge
        for after in edge[0].next_functions:
            if after[0] is not None and after not in seen:
                seen.add(after)
                stack.append(after)


@dataclass(eq=False)
class _Entry:
    penalty: Penalty
    leaves: list[Tensor]  # what the penalty's gradient reaches; empty where autograd hides it
    # Where it went the last time: parameter, its gradient and that gradient's version. None: never added.
    added: list[tuple[Tensor, Tensor, int]] | None = None

    @property
    def edge(self) -> _Edge:
        # Asked for anew each time: an operation in place gives the tensor another one.
        found = get_gradient_edge(_source(self.penalty))
        return found.node, found.output_nr

    @property
    def open(self) -> bool:
        """Never added, or the gradients it went to were cleared since; and somebody would take it."""
        if self.leaves and not any(leaf.requires_grad for leaf in self.leaves):
            return False  # `toggle_optimizer` switched off all that it could reach
        return self.added is None or any(_cleared(*entry) for entry in self.added)

    @property
    def held(self) -> bool:
        """In the gradients, and not cleared since."""
        return bool(self.added) and not any(_cleared(*entry) for entry in self.added or [])

    def note(self, parameters: Iterable[Tensor]) -> None:
        """Remembers where the penalty went, if anybody took it."""
        # FSDP2 computes with whole parameters that live for one call, and keeps their gradients at the shards (DTensors).
        shards = [parameter for parameter in parameters if hasattr(parameter, "to_local")]
        reached = [leaf for leaf in [*self.leaves, *shards] if leaf.requires_grad]
        taken = [leaf for leaf in reached if leaf.grad is not None]
        if taken or not self.leaves:
            self.added = [(leaf, leaf.grad, leaf.grad._version) for leaf in taken if leaf.grad is not None]

    def follow(self) -> None:
        """Another backward pass went over the gradients that hold the penalty."""
        now = [(leaf, leaf.grad) for leaf, _, _ in self.added or []]
        self.added = [(leaf, grad, grad._version) for leaf, grad in now if grad is not None]


def _source(penalty: Penalty) -> Tensor:
    return penalty.gradients[0][0] if penalty.source is None else penalty.source


def _cleared(parameter: Tensor, grad: Tensor, version: int) -> bool:
    if parameter.grad is not grad:
        return True
    # `zero_grad(set_to_none=False)` writes into the same tensor, but so do clipping and another backward pass.
    return grad._version != version and not bool(grad.any())


class Ledger:
    """The penalties of one step's recorded calls.

    A penalty is owed to a loss whose graph reaches the recorded call: once for each call, and once more after the
    gradients that it went to were cleared, as when one generator call serves both losses of a GAN.

    Args:
        parameters: Returns the parameters of the module that was called.

    Example:
        >>> import torch
        >>> weight = torch.ones(2, requires_grad=True)
        >>> hidden = 2 * weight
        >>> ledger = Ledger()
        >>> ledger.enter([Penalty(torch.ones(()), [(hidden, torch.ones(2))])])
        >>> loss, other = hidden.sum(), weight.sum()
        >>> len(ledger.due(other)), len(ledger.due(loss))
        (0, 1)
        >>> loss.backward(retain_graph=True)
        >>> ledger.settle()
        >>> len(ledger.due(loss))
        0
        >>> weight.grad = None
        >>> len(ledger.due(loss))
        1
    """

    def __init__(self, parameters: Callable[[], Iterable[Tensor]] = tuple) -> None:
        self._parameters = parameters
        self._entries: list[_Entry] = []
        self._due: list[_Entry] = []
        self._kept: list[_Entry] = []

    def enter(self, penalties: Sequence[Penalty]) -> None:
        """Adds penalties, one for each newly recorded call."""
        for penalty in penalties:
            leaves = [leaf for node, _ in edges_under(_source(penalty)) if (leaf := _leaf(node)) is not None]
            self._entries.append(_Entry(penalty, leaves))

    def due(self, loss: Tensor) -> list[Penalty]:
        """The penalties that belong to a loss about to be differentiated; :meth:`settle` follows the backward pass."""
        candidates = {entry: entry.edge for entry in self._entries if entry.open}
        # Still in the gradients, which this backward pass may replace by sums (`create_graph=True`): not a clearing.
        self._kept = [entry for entry in self._entries if entry.held]
        unseen = set(candidates.values())
        if unseen:
            for edge in edges_under(loss):
                unseen.discard(edge)
                if not unseen:
                    break
        self._due = [entry for entry, edge in candidates.items() if edge not in unseen]
        return [entry.penalty for entry in self._due]

    def settle(self) -> None:
        """The backward pass with the penalties that were due is over."""
        for entry in self._due:
            entry.note(self._parameters())
        for entry in self._kept:
            entry.follow()
        self._due, self._kept = [], []


def _leaf(node: Any) -> Tensor | None:
    """The tensor whose gradient a node of the graph accumulates, if it is such a node."""
    variable = None if node.next_functions else getattr(node, "variable", None)
    return variable if isinstance(variable, Tensor) else None
