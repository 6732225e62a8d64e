"""A finished model's weights, wherever they lie: whole ones, one after the other."""

from collections.abc import Generator, Iterator
from contextlib import closing

from torch import Tensor, nn

from legibility.lightning_plugins.foundation._trees import whole
from legibility.lightning_plugins.report._queries import Subject
from legibility.lightning_plugins.sparsity.weights._weights import penalisable_weights
from legibility.scores.flat_weights import FlatWeights


def matrices(subject: Subject) -> Generator[tuple[str, Tensor]]:
    """Name and value of each matrix that sparsity is about, gathered if it is spread over ranks.

    All ranks must ask for all of them, and close what they don't exhaust. A tensor is whole until the next is asked for.
    """
    for group in _groups(subject):
        here = {id(parameter) for parameter in group}
        for name, weight in penalisable_weights(subject.primary).items():
            if id(weight) in here:
                subject.ranks.meet()
                yield name, whole(weight.detach())


def every_weight(subject: Subject) -> Generator[Tensor]:
    """The same for all parameters."""
    for group in _groups(subject):
        for parameter in group:
            subject.ranks.meet()
            yield whole(parameter.detach())


def _groups(subject: Subject) -> Iterator[list[nn.Parameter]]:
    """Parameters that are whole at the same time under FSDP1; elsewhere there is one group."""
    with closing(FlatWeights(subject.outermost).each(subject.primary)) as groups:
        while True:
            subject.ranks.meet()
            group = next(groups, None)
            if group is None:
                return
            yield [parameter for parameter in group if not nn.parameter.is_lazy(parameter)]
