"""What there is between the targets and the optimizers: who steps which weight, and whether a step was skipped inside."""

from collections.abc import Mapping, Sequence

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer


def is_stepped(weight: Tensor, optimizers: Sequence[Optimizer]) -> bool:
    """Whether an optimizer holds a weight now: frozen layers may come later."""
    groups = (group["params"] for optimizer in optimizers for group in optimizer.param_groups)
    return any(weight is parameter for parameters in groups for parameter in parameters)


def check_stepped(who: str, weights: Mapping[str, Tensor], optimizers: Sequence[Optimizer]) -> None:
    """Warns of targets that no optimizer steps.

    Raises:
        ValueError: None is stepped, or an optimizer writes copies of its own over the weights.
    """
    for optimizer in optimizers:
        if getattr(optimizer, "master_weights", False):
            raise ValueError(
                f"`targets`: {type(optimizer).__name__} keeps master weights of its own and writes them over the "
                "model's after each step, so zeros would not stay. Switch them off (`master_weights=False`)."
            )
    missed = [name for name, weight in weights.items() if not is_stepped(weight, optimizers)]
    listed = ", ".join(missed[:5]) + (", ..." if len(missed) > 5 else "")
    if len(missed) == len(weights):
        raise ValueError(
            f"`targets`: no optimizer steps any of {listed}. Zeros are made after an optimizer's step on "
            "the module's own parameters: optimizers with copies of their own (master weights) can't be followed."
        )
    if missed:
        rank_zero_warn(
            f"{who}: no optimizer steps {listed}. They stay as they are and aren't counted, until one does; leave them out "
            "by `exclude=` or `targets=`."
        )


def skipped(optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """1 if a fused optimizer under a gradient scaler skipped its step inside, else 0; None where it can't tell.

    An ordinary optimizer is not stepped on overflow, a fused one is, and finds out on the device.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.to(device).reshape(())
