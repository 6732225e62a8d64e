"""What all penalties share that are paid in proximal steps: a budget or a goal, a schedule, the learning rate."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from legibility.lightning_plugins.foundation._callback import check_positive, check_share, check_strength
from legibility.lightning_plugins.sparsity._ascent import READINGS, Ascent
from legibility.lightning_plugins.sparsity._schedule import Schedule
from legibility.lightning_plugins.sparsity._weight_step import WeightStep

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_MISSED = 0.02  # how far from a goal for the sparsity a fit may end without a word
_HALF = (torch.bfloat16, torch.float16)


class PenaltyStep(WeightStep):
    """Base of the callbacks whose strength is a budget, or follows a goal by dual ascent.

    A subclass implements ``_move`` and takes its thresholds from :meth:`_threshold`; a goal for the sparsity is about
    what :meth:`_reached` returns.
    """

    def __init__(
        self,
        strength: float | Mapping[str, float] | None,
        targets: str | Sequence[str],
        exclude: str | Sequence[str],
        schedule: Schedule | None,
        heal: float,
        total_steps: int | None,
        *,
        follow_rate: bool,
        sparsity: float | None,
        loss_budget: float | None,
        monitor: str | None,
    ) -> None:
        self._ascent = _ascent(strength, sparsity, loss_budget, monitor)
        budgets = strength if isinstance(strength, Mapping) else {"*": 1.0 if strength is None else strength}
        if not budgets:
            raise ValueError("`strength` is an empty mapping: give a budget for each pattern, or one number.")
        self.budgets = {pattern: check_strength(budget, "strength") for pattern, budget in budgets.items()}
        if isinstance(strength, Mapping):
            if targets != "*":
                raise ValueError("`targets`: the patterns of `strength` are the targets already; give one of the two.")
            targets = list(self.budgets)
        super().__init__(targets, exclude, schedule or Schedule(), heal, total_steps)
        self.follow_rate = follow_rate
        self.monitor = monitor
        self._missed = False

    @property
    def strength(self) -> float:
        """The budget; of several, the largest."""
        return max(self.budgets.values())

    @property
    def strengths(self) -> dict[str, float]:
        """The budget, under the name of the term; with several, one for each pattern too."""
        several = self.budgets if len(self.budgets) > 1 else {}
        each = {f"{self.term}.{pattern}": budget for pattern, budget in several.items()}
        return {self.term: self.strength} | each

    def _begin(self, trainer: "Trainer", fresh: bool) -> None:
        self._levels = self.schedule.total(self._penalised)
        if self._ascent is not None:
            self._ascent.restore({k.removeprefix("ascent."): v for k, v in self._memory.items() if "ascent." in k})

    def _budget_of(self, name: str) -> float:
        return next(budget for pattern, budget in self.budgets.items() if fnmatch.fnmatchcase(name, pattern))

    def _reached(self) -> Tensor | float:
        """The sparsity that a goal is about; under a sharded strategy all ranks ask."""
        return self.zero_share()

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks whether the goal is reached, if there is one, and logs."""
        if self._ascent is not None and self.active:
            with self._timed():
                self._look(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _look(self, trainer: "Trainer") -> None:
        done = max(self._done.values(), default=0)
        since = done - int(self._memory.get("looked", 0))
        if self._ascent is None or done >= self._penalised or since < max(1, self._penalised // READINGS):
            return
        reached: Any = self._reached() if self.monitor is None else trainer.callback_metrics.get(self.monitor)
        if reached is None:
            return
        if self.monitor is not None:  # the ranks may log losses of their own; zeros are the same everywhere
            reached = trainer.strategy.reduce(torch.as_tensor(reached, dtype=torch.float32), reduce_op="mean")
        self._ascent.read(float(reached), steps=since, done=done, of=self._penalised)
        self._memory |= {"looked": done} | {f"ascent.{k}": v for k, v in self._ascent.state().items()}

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """As of all; and says if the loss of a ``loss_budget`` was never logged."""
        super().on_train_epoch_end(trainer, pl_module)
        if (
            self.active
            and self.monitor is not None
            and not self._missed
            and self.monitor not in trainer.callback_metrics
        ):
            self._missed = True
            rank_zero_warn(
                f"{type(self).__name__}: `monitor` = {self.monitor!r} was not logged in this epoch, and without it there is "
                f"no penalty. Logged were: {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}."
            )

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """As of all; and says if a goal for the sparsity was missed."""
        super().on_train_end(trainer, pl_module)
        goal = None if self._ascent is None else self._ascent.sparsity
        if goal is None or not self.active or self._start is None:
            return
        reached = float(self._reached())
        if abs(reached - goal) > _MISSED:
            rank_zero_warn(
                f"{type(self).__name__}: `sparsity` = {goal:g} was asked for, {reached:.3f} was reached after "
                f"{max(self._done.values(), default=0)} of {self._planned} steps. More steps, a "
                "higher learning rate in the last of them or `follow_rate=False` bring it closer; `TopKSparsity` keeps an "
                "exact share."
            )

    def _to_log(self) -> dict[str, Tensor | float]:
        return {} if self._ascent is None else {"factor": self._ascent.factor}

    def _threshold(self, budget: float, size: float, pace: float, step: int) -> float:
        """This step's part of a budget in units of ``size``."""
        level = self.schedule.level(step, self._penalised) / self._levels if self._levels > 0 else 0.0
        factor = level if self._ascent is None else level * self._ascent.factor
        return budget * size * factor * (pace if self.follow_rate else 1.0)

    def _keep_rounding(self) -> None:
        """In half precision most steps would round to nothing: what rounding takes is kept for each target."""
        self._keep("rounded", [name for name, weight in self._weights.items() if weight.dtype in _HALF])

    def _rounding(self, name: str) -> Tensor | None:
        """What was kept of a target, for what this rank holds of it; None in full precision."""
        return self._tensors.get(f"rounded.{name}")


def _ascent(
    strength: float | Mapping[str, float] | None,
    sparsity: float | None,
    loss_budget: float | None,
    monitor: str | None,
) -> Ascent | None:
    if sparsity is None and loss_budget is None:
        if strength is None:
            raise ValueError("`strength` is missing: give a budget, or a goal by `sparsity=` or `loss_budget=`.")
        if monitor is not None:
            raise ValueError("`monitor` is the loss that `loss_budget` is about; give that too.")
        return None
    if sparsity is not None and loss_budget is not None:
        raise ValueError("`sparsity` and `loss_budget` are two goals; one strength can follow only one of them.")
    if sparsity is not None:
        if monitor is not None:
            raise ValueError("`monitor` belongs to `loss_budget`, not to `sparsity`.")
        return Ascent(sparsity=check_share(sparsity, "sparsity"))
    if monitor is None:
        raise ValueError('`monitor` is missing: the name of the logged loss that `loss_budget` is about, "train_loss".')
    return Ascent(loss_budget=check_positive(loss_budget or 0.0, "loss_budget"))
