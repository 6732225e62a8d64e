"""What a fit in manual optimization has to remember: what is owed to which loss, and who stepped."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from legibility.lightning_plugins.foundation._injector import Penalty, total_penalty
from legibility.lightning_plugins.foundation._ledger import Ledger

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class ManualOptimization:
    """Follows the backward passes and optimizer steps that the user's own ``training_step`` runs.

    Args:
        optimizers: Those of the fit; :meth:`remove` takes the hooks off them.
        primary: Returns the primary, or None before it was found.
        adds: Whether there is a term to add; without one there is nothing to warn of.
        who: The callback, for its warnings.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], primary: Callable[[], nn.Module | None], adds: bool, who: str
    ) -> None:
        self._primary, self._adds, self._who = primary, adds, who
        self._handles: list[RemovableHandle] = [o.register_step_post_hook(self._notice) for o in optimizers]
        self._ledger = Ledger(self._parameters)
        self._warned: set[str] = set()
        self._backwards, self._entered, self._added = 0, False, False
        self._added_now, self._steps, self._stepped = False, 0, False

    def remove(self) -> None:
        """Takes the hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _parameters(self) -> list[nn.Parameter]:
        primary = self._primary()
        return [] if primary is None else list(primary.parameters())

    def _notice(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._steps += 1
        primary = self._primary()
        ours = None if primary is None else {id(parameter) for parameter in primary.parameters()}
        held = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        self._stepped = self._stepped or ours is None or any(parameter in ours for parameter in held)

    def begin_batch(self) -> None:
        """A batch begins: nothing is owed, nobody has stepped."""
        self.forget()
        self._backwards, self._added_now, self._steps, self._stepped = 0, False, 0, False

    def forget(self) -> None:
        """The step is over: its graphs may go."""
        self._ledger = Ledger(self._parameters)

    def due(self, loss: Tensor, penalties: Sequence[Penalty]) -> Penalty | None:
        r"""What to add to a loss that is about to be differentiated.

        :math:`\frac1n \sum_i \lambda\, t_i` over the n recorded calls that the loss depends on and whose penalty is
        not in the gradients yet.

        Args:
            loss: As the user gave it to ``manual_backward``.
            penalties: Of the calls recorded since the last one.

        Raises:
            ValueError: The loss has several elements.
        """
        if self._adds and loss.numel() != 1:
            raise ValueError(
                f"`loss` given to `manual_backward` must have one element for a term to be added to it, got shape "
                f"{tuple(loss.shape)}: reduce it in `training_step`, as with `loss.mean()`."
            )
        self._backwards += 1
        self._ledger.enter(penalties)
        self._entered = self._entered or bool(penalties)
        due = self._ledger.due(loss)
        if not due:
            return None
        self._added = self._added_now = True
        return total_penalty(due, share=1 / len(due))

    def settle(self) -> None:
        """The backward pass is over."""
        self._ledger.settle()

    def end_batch(self, *, trained: bool, counted: bool) -> bool:
        """Whether the primary's optimizer stepped in this batch; warns of what the term could not reach.

        Args:
            trained: The primary was called with gradients.
            counted: Lightning counted a step. With a loss scale that was too large, no optimizer took it.
        """
        if self._adds and trained and self._steps and not self._backwards:
            self._warn(
                "an optimizer stepped without `self.manual_backward(loss)`: the term cannot enter a loss that is "
                "differentiated by `loss.backward()`. Call `self.manual_backward(loss)` in `training_step` instead."
            )
        if self._added_now and not self._steps and not counted:
            self._warn(
                "gradients are accumulated over batches by hand: the term enters every loss at its full `strength`. "
                "Where `training_step` divides its loss by the number of batches, divide `strength` by it too."
            )
        return self._stepped

    def end_fit(self, model: str) -> None:
        """Warns if the term never entered any loss.

        Args:
            model: The primary's name.
        """
        if self._entered and not self._added and self._backwards:
            self._warn(
                f"no loss given to `manual_backward` depended on the output of {model or 'the LightningModule'!r}, so "
                "the term was never added. Name another module with `model=`."
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"{self._who}: {message}")


def manual_optimization(
    trainer: "Trainer", primary: Callable[[], nn.Module | None], adds: bool, who: str
) -> ManualOptimization | None:
    """A :class:`ManualOptimization` for a fit whose module steps by hand, None for any other."""
    if trainer.lightning_module.automatic_optimization:
        return None
    return ManualOptimization(trainer.optimizers, primary, adds, who)
