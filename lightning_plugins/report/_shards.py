"""Measuring a model whose weights are spread over ranks: all ranks put the same questions, each with its shards.

A forward call of a sharded model is collective. So every rank measures, in step, on rank 0's queries, and rank 0 writes.
Nobody holds the whole model: one whole weight at a time for the sparsity, one module's weights at a time for the
random-init control, beside what FSDP gathers for any forward call.
"""

from typing import TYPE_CHECKING

from legibility.lightning_plugins.report._queries import KeptCalls

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def in_step(trainer: "Trainer") -> bool:
    """Whether all ranks must measure together: FSDP2 and tensor parallelism."""
    return "ModelParallelStrategy" in _bases(trainer)


def common_calls(trainer: "Trainer", kept: KeptCalls) -> KeptCalls:
    """The kept calls; those of rank 0 where all ranks must ask the same.

    Raises:
        ValueError: Under FSDP1.
    """
    if "FSDPStrategy" in _bases(trainer):
        raise ValueError(
            "FSDPStrategy (FSDP1) keeps flat pieces of weights, in which neither zeros can be counted by matrix nor an "
            "untrained control be drawn; train with ModelParallelStrategy (FSDP2), or measure the saved model"
        )
    return trainer.strategy.broadcast(kept) if in_step(trainer) else kept


def agreed(trainer: "Trainer", seconds: float) -> float:
    """Rank 0's number where all ranks measure together, for what all must decide alike."""
    return float(trainer.strategy.broadcast(seconds)) if in_step(trainer) else seconds


def _bases(trainer: "Trainer") -> set[str]:
    return {base.__name__ for base in type(trainer.strategy).__mro__}
