"""Measuring a model whose weights are spread over ranks: all ranks put the same questions, each with its shards.

A forward call of a sharded model is collective. So every rank measures, in step, on rank 0's queries, and rank 0 writes.
Nobody holds the whole model: one whole weight (under FSDP1: the weights of one wrapper) at a time for the sparsity and for
the random-init control, beside what FSDP gathers for any forward call.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist
from torch import nn

from legibility.lightning_plugins.foundation._sizes import outermost
from legibility.scores.flat_weights import wraps_flat

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_Shared = TypeVar("_Shared")


def refuse_to_wrap_again(pl_module: nn.Module) -> None:
    """A validation run of its own would have Lightning wrap the module, which FSDP1 allows once.

    Raises:
        ValueError: It is wrapped.
    """
    if any(wraps_flat(module) for module in outermost(pl_module).modules()):
        raise ValueError(
            "`datamodule`: Lightning can't validate with a module that FSDPStrategy (FSDP1) has wrapped for a fit. Leave "
            "it out, then what the fit kept is asked; or load the checkpoint into a new module and measure that."
        )


class OtherRankFailed(RuntimeError):
    """A rank that measures together with this one has given up."""


class Ranks:
    """The ranks of a trainer, as far as they measure together.

    Before whatever only all of them can do, they :meth:`meet`. One that fails comes to that meeting too, says so and
    leaves, so nobody waits for it.

    Args:
        trainer: Its strategy decides.
    """

    def __init__(self, trainer: "Trainer") -> None:
        bases = {base.__name__ for base in type(trainer.strategy).__mro__}
        self._strategy = trainer.strategy
        #: Whether the weights are flat pieces (FSDP1).
        self.flat = "FSDPStrategy" in bases
        #: Whether all must measure: FSDP1, FSDP2 and tensor parallelism.
        self.together = self.flat or "ModelParallelStrategy" in bases

    def meet(self) -> None:
        """Waits for the others.

        Raises:
            OtherRankFailed: One of them can't go on; what it said.
        """
        said = self._told(None)
        if said:
            raise OtherRankFailed(said)

    def first(self, value: _Shared) -> _Shared:
        """Rank 0's value, for what all must know or decide alike."""
        if not self.together:
            return value
        self.meet()
        return self._strategy.broadcast(value)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Around all that they do together: an error is told to the others, whose next meeting it is."""
        try:
            yield
        except OtherRankFailed:
            raise
        except Exception as error:
            self._told(f"{type(error).__name__}: {error}")
            raise
        with suppress(OtherRankFailed):  # it was the last meeting: what this rank has is complete
            self.meet()

    def _told(self, failure: str | None) -> str:
        """What the ranks that fail say, if any does."""
        if not self.together or self._strategy.reduce_boolean_decision(failure is None):
            return ""
        said: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(said, failure)
        return "; ".join(f"rank {rank} failed: {why}" for rank, why in enumerate(said) if why is not None)
