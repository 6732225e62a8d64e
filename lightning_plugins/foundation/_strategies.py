"""Which strategies leave gradients and weights where our callbacks expect them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_KNOWN = {"SingleDeviceStrategy", "DDPStrategy", "FSDPStrategy", "ModelParallelStrategy"}
_INSTEAD = "Use one device, DDP, FSDP, or ModelParallelStrategy (FSDP2)."


def check_strategy(trainer: "Trainer") -> None:
    """Refuses strategies under which nobody could say whether a term or an exact zero arrives.

    Strategies are told by the names of their classes and bases: somebody's subclass of DDP is DDP.

    Raises:
        NotImplementedError: Under DeepSpeed, XLA, or several ranks of an unknown strategy.
    """
    strategy = trainer.strategy
    name, bases = type(strategy).__name__, {base.__name__ for base in type(strategy).__mro__}
    if "DeepSpeedStrategy" in bases:
        raise NotImplementedError(
            "`strategy`: DeepSpeed is not supported. It differentiates the loss and keeps copies of the weights "
            f"itself, so neither a term nor an exact zero would be certain to arrive. {_INSTEAD}"
        )
    if any("XLA" in base for base in bases):
        raise NotImplementedError(
            f"`strategy`: {name} is not supported. XLA runs a step later than it is written, and students, proximal "
            f"steps and scores read numbers in between. {_INSTEAD}"
        )
    if not bases & _KNOWN and trainer.world_size > 1:
        raise NotImplementedError(
            f"`strategy`: {name} is not known, so neither is whether it averages gradients over its "
            f"{trainer.world_size} ranks, which the students' share of the loss depends on. {_INSTEAD} A strategy of "
            "your own that averages them like DDP may derive from DDPStrategy."
        )
