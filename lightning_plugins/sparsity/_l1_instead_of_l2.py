"""Switches weight decay and dropout off for the time of a fit: room for L1."""

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from legibility.lightning_plugins.foundation._callback import LegibilityCallback
from legibility.lightning_plugins.foundation._names import plain_name

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_DROPOUTS = nn.modules.dropout._DropoutNd


class L1InsteadOfL2(LegibilityCallback):
    """Sets every optimizer's weight decay and every dropout probability to 0 during a fit, and back afterwards.

    Whether "L1 in, L2 and dropout out" pays is a question to measure (``legibility sweep digits``), not a promise.
    Every change is printed once and kept in :attr:`changes`. Checkpoints written meanwhile hold the user's own weight
    decay, so they resume without this callback as if it had never been there.

    What it finds: ``weight_decay`` of all parameter groups; ``nn.Dropout`` and its relatives; and numeric attributes
    of modules whose name contains "dropout" (attention, recurrent layers). Dropout written as a literal in a forward
    method can't be seen. Decay that a user adds to the loss by hand can't either.

    Args:
        weight_decay: Switch weight decay off.
        dropout: Switch dropout off.

    Raises:
        ValueError: Both are False: there is nothing to do.

    Example:
        >>> callback = L1InsteadOfL2()
        >>> callback.changes
        {}

    Source: the A/B question is this project's own; decoupled weight decay after Loshchilov and Hutter 2019, dropout
    after Srivastava et al. 2014.
    """

    def __init__(self, weight_decay: bool = True, dropout: bool = True) -> None:
        super().__init__()
        if not (weight_decay or dropout):
            raise ValueError("`weight_decay` and `dropout` are both False: nothing would be switched off.")
        self.weight_decay = weight_decay
        self.dropout = dropout
        #: What was switched off, by name, with its value before.
        self.changes: dict[str, float] = {}
        self._groups: list[tuple[dict[str, Any], float]] = []
        self._attributes: list[tuple[nn.Module, str, float]] = []

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self.changes = {}

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """After every restore, so that a checkpoint's parameter groups do not undo it."""
        if self.weight_decay:
            for index, optimizer in enumerate(trainer.optimizers):
                self._switch_off_decay(index, optimizer)
        if self.dropout:
            for name, module in pl_module.named_modules():
                self._switch_off_dropout(plain_name(name), module)
        if trainer.is_global_zero:
            listed = ", ".join(f"{name} (was {value:g})" for name, value in self.changes.items())
            print(f"L1InsteadOfL2 switched off: {listed or 'nothing, there is no weight decay and no dropout'}.")

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """Puts the user's own weight decay into the checkpoint."""
        before = {id(group): value for group, value in self._groups}
        for optimizer, state in zip(trainer.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            for group, saved in zip(optimizer.param_groups, state.get("param_groups", ()), strict=False):
                if id(group) in before:
                    saved["weight_decay"] = before[id(group)]

    def _switch_off_decay(self, index: int, optimizer: Optimizer) -> None:
        for number, group in enumerate(optimizer.param_groups):
            if group.get("weight_decay"):
                self._groups.append((group, group["weight_decay"]))
                self.changes[f"optimizer {index}, group {number}: weight_decay"] = float(group["weight_decay"])
                group["weight_decay"] = 0.0

    def _switch_off_dropout(self, name: str, module: nn.Module) -> None:
        attributes = ["p"] if isinstance(module, _DROPOUTS) else [key for key in vars(module) if "dropout" in key]
        for attribute in attributes:
            value = vars(module).get(attribute)
            if isinstance(value, float) and 0 < value <= 1:
                self._attributes.append((module, attribute, value))
                self.changes[f"{name}.{attribute}"] = value
                setattr(module, attribute, 0.0)

    def _uninstall(self) -> None:
        for group, value in self._groups:
            group["weight_decay"] = value
        for module, attribute, value in self._attributes:
            setattr(module, attribute, value)
        self._groups, self._attributes = [], []
