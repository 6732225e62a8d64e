"""A coefficient that rises over the first share of a fit."""

import math
from typing import TYPE_CHECKING

from legibility.lightning_plugins.foundation._callback import check_share, step_of, total_steps

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_UNKNOWN_LENGTH = 1000  # steps over which the warm-up share is taken where the trainer can't tell the length


class WarmUp:
    r"""A linear rise to 1: :math:`w_t = \min(1, (t - t_0 + 1) / n)`, with n a share of the fit's steps.

    Args:
        share: Of the steps, in [0, 1).

    Attributes:
        start: :math:`t_0`, the first step; None before the first fit.
        steps: n.

    Raises:
        ValueError: The share is not in [0, 1).

    Example:
        >>> warm_up = WarmUp(0.5)
        >>> warm_up.start, warm_up.steps = 10, 4
        >>> [warm_up.at(step) for step in (10, 12, 13, 14)]
        [0.25, 0.75, 1.0, 1.0]
    """

    def __init__(self, share: float) -> None:
        self._share = check_share(share, "warmup")
        self.start: int | None = None
        self.steps = 0

    def begin(self, trainer: "Trainer") -> None:
        """A fit begins: its length is known now, and so is the state to resume from."""
        if self.start is None:
            self.start = step_of(trainer)
        end = _last_step(trainer)
        duration = _UNKNOWN_LENGTH if end is None else max(1, end - self.start)
        self.steps = round(self._share * duration)

    def at(self, step: int) -> float:
        """The factor at a step."""
        since = step - (self.start or 0)
        return min(1.0, (since + 1) / self.steps) if self.steps > 0 else 1.0


def _last_step(trainer: "Trainer") -> int | None:
    end = total_steps(trainer)
    if trainer.lightning_module.automatic_optimization or trainer.max_steps < 0:
        return end
    # `max_steps` counts every optimizer's steps, our steps are batches: each optimizer is taken to step once in each.
    batches = math.ceil(trainer.max_steps / max(1, len(trainer.optimizers)))
    return batches if end is None else min(end, batches)
