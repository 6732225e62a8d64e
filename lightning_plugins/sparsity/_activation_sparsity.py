"""Activation sparsity: a term on named activations whose value doesn't fall when they only shrink."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._callback import (
    LegibilityCallback,
    check_positive,
    check_strength,
    is_logging_step,
    no_autocast,
    step_of,
    total_steps,
)
from legibility.lightning_plugins.foundation._compiled import forget_compiled
from legibility.lightning_plugins.foundation._hooks import Hooks
from legibility.lightning_plugins.foundation._injector import Penalty, injector_of, total_penalty
from legibility.lightning_plugins.foundation._manual_optimization import ManualOptimization, manual_optimization
from legibility.lightning_plugins.foundation._names import match_names, modules_by_name
from legibility.lightning_plugins.foundation._recorder import recomputing
from legibility.lightning_plugins.foundation._trees import tensors_in
from legibility.lightning_plugins.sparsity._ascent import READINGS, Ascent
from legibility.lightning_plugins.sparsity._schedule import Schedule
from legibility.losses import activation_l1, rectified_l1, tail_energy

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

Kind = Literal["l1", "rectified", "top_k"]
_PATIENCE = 10  # training steps without a call of any tap, after which that is said


class ActivationSparsity(LegibilityCallback):
    r"""Adds :math:`\mathrm{strength}\cdot s_t \cdot \mathrm{mean}_j\,\Omega(a_j)` to the loss, over the calls of named modules.

    :math:`\Omega` is one of three values, none of which falls when activations only shrink (but the gradient of "l1" shrinks
    them all the same, for it takes the RMS for a constant: too high a strength ends in activations that are all zero, and
    in a value of 0; watch the task's loss):

    - "l1": :math:`\mathrm{mean}|a| / \mathrm{sg}(\mathrm{rms}\,a)` (:func:`legibility.losses.activation_l1`)
    - "rectified": L1 of each unit's rectified activations at unit variance (:func:`legibility.losses.rectified_l1`)
    - "top_k": share of each example's energy outside of its k largest activations (:func:`legibility.losses.tail_energy`)

    s is the schedule's level. What you log in ``training_step`` stays the task loss. The model itself is not changed:
    nothing is cut off, so it computes the same with and without this callback. To cut off for good, call
    :func:`legibility.losses.abs_top_k` in your model's ``forward``.

    Args:
        strength: Coefficient, >= 0. 0 does nothing at all.
        taps: Shell patterns over module names: whose outputs shall be sparse. The last dimension holds the units; for
            images (4 dimensions, as convolutions return them) it is the second.
        kind: Which value.
        k: For "top_k": how many activations of an example are free.
        schedule: Level over the whole fit; where the trainer can't tell its length, that at the start.
        loss_budget: Highest value of ``monitor`` that sparsity may cost: ``strength`` is multiplied by a factor that rises
            while the loss is below it (:class:`~legibility.lightning_plugins.sparsity._ascent.Ascent`).
        monitor: Name of a logged loss, for ``loss_budget``.

    Raises:
        ValueError: Before the first optimizer step: a strength that is negative or NaN, a pattern that matches nothing,
            a module that does not run where others do, ``k`` without "top_k" or larger than the number of units, one of
            ``loss_budget`` and ``monitor`` without the other, a budget in a fit of unknown length.

    Logs ``legibility/activation/<kind>`` (unweighted) and ``legibility/activation/strength``, the factor included.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> sparse = ActivationSparsity(0.1, taps="net.1")
        >>> trainer = Trainer(callbacks=[sparse], logger=False, enable_checkpointing=False)

    Source: L1 on activations as in sparse coding (Olshausen and Field 1996); AbsTopK of Gao et al. 2025 as a penalty.
    """

    def __init__(
        self,
        strength: float,
        taps: str | Sequence[str],
        kind: Kind = "l1",
        k: int | None = None,
        schedule: Schedule | None = None,
        *,
        loss_budget: float | None = None,
        monitor: str | None = None,
    ) -> None:
        super().__init__()
        self.strength = check_strength(strength)
        self.taps = taps
        if kind not in ("l1", "rectified", "top_k"):
            raise ValueError(f'`kind` must be "l1", "rectified" or "top_k", got {kind!r}.')
        if (k is None) != (kind != "top_k") or (k is not None and (not isinstance(k, int) or k < 1)):
            raise ValueError(f'`k`, a number from 1, belongs to kind="top_k" and only to it; got k={k}, kind={kind!r}.')
        self.kind: Kind = kind
        self.k = k
        self.schedule = schedule or Schedule()
        if (loss_budget is None) != (monitor is None):
            raise ValueError("`loss_budget` is about a logged loss, `monitor` is its name: give both or neither.")
        self._ascent = None if loss_budget is None else Ascent(loss_budget=check_positive(loss_budget, "loss_budget"))
        self.monitor = monitor
        self._looked = 0
        self._hooks: Hooks | None = None
        self._module: weakref.ref[nn.Module] | None = None
        self._trainer: Trainer | None = None
        self._manual: ManualOptimization | None = None
        self._forget()
        self._logs: dict[str, Tensor | float] = {}
        self._before = 0

    @property
    def state_key(self) -> str:
        """Distinguishes several instances by what they act on."""
        return self._generate_state_key(taps=self.taps, kind=self.kind)

    @property
    def strengths(self) -> dict[str, float]:
        """The coefficient, under the name of the term."""
        return {f"activation_{self.kind}": self.strength}

    def strength_at(self, step: int) -> float:
        """The coefficient at a step."""
        steps = None if self._trainer is None else total_steps(self._trainer)
        level = self.schedule.at(0.0) if steps is None else self.schedule.level(step, steps)
        return self.strength * level * (1.0 if self._ascent is None else self._ascent.factor)

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        modules = modules_by_name(pl_module)
        self._names = match_names(self.taps, modules, "taps")
        if self.strength == 0:
            return
        forget_compiled()
        self._module, self._trainer = weakref.ref(pl_module), trainer
        self._hooks = Hooks(pl_module)
        for name in self._names:
            self._hooks.add(name, modules[name], self._record)
        injector_of(pl_module).attach(self)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """The optimizers exist."""
        state, self._pending = self._pending or {}, None
        self._looked = state.get("looked", 0)
        if self._ascent is not None:
            self._ascent.restore(state.get("ascent", {}))
            if self.strength > 0 and total_steps(trainer) is None:
                raise ValueError("`loss_budget` needs to know how long the fit is: give `max_steps` or `max_epochs`.")
        if self.strength > 0:
            self._manual = manual_optimization(trainer, lambda: pl_module, adds=True, who=type(self).__name__)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Says so if the term never found a loss."""
        if self._manual is not None:
            self._manual.end_fit(", ".join(self._names))

    def state_dict(self) -> dict[str, Any]:
        """Where the factor stands, so that a resumed fit goes on exactly."""
        return {} if self._ascent is None else {"ascent": self._ascent.state(), "looked": self._looked}

    def _uninstall(self) -> None:
        module = self._module() if self._module is not None else None
        if module is not None:
            injector_of(module).detach(self)
        if self._hooks is not None:
            self._hooks.remove()
        if self._manual is not None:
            self._manual.remove()
        self._hooks, self._manual, self._trainer, self._module, self._logs = None, None, None, None, {}
        self._forget()

    def _forget(self) -> None:
        self._open, self._calls, self._seen = False, list[tuple[str, Tensor, Tensor]](), set[str]()

    # -- one batch

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Nothing is owed to anybody yet."""
        self._before = trainer.global_step
        if self._manual is not None:
            self._manual.begin_batch()

    def before_step(self, batch: Any) -> None:
        """The user's step begins: record."""
        self._open, self._calls = True, []

    def abandon_step(self) -> None:
        """The user's step raised: forget."""
        self._open, self._calls = False, []
        if self._manual is not None:
            self._manual.forget()

    @contextmanager
    def around_backward(self, loss: Tensor, batch: Any) -> Iterator[Penalty | None]:
        """Manual optimization: what was called since the last backward pass gets its penalty."""
        assert self._manual is not None
        with self._timed():
            due = self._manual.due(loss, self._penalties())
        yield due
        self._manual.settle()

    def after_step(self, batch: Any, loss: Tensor | None) -> Penalty | None:
        """The user's step is over: what was recorded gets its penalty."""
        with self._timed():
            penalties = self._penalties()
            self._open = False
            self._check_seen()
            if self._manual is not None:
                self._manual.forget()
                return None
            return total_penalty(penalties, share=1 / len(penalties)) if penalties else None

    def _check_seen(self) -> None:
        missing = [name for name in self._names if name not in self._seen]
        if missing and self._seen:
            raise ValueError(
                f"`taps`: {', '.join(missing[:5])} did not run with gradients in a training step in which "
                f"{min(self._seen)} did. Name modules that this forward calls; inside of `torch.utils.checkpoint` that "
                "needs `use_reentrant=False`."
            )
        if missing and self._steps == _PATIENCE:
            rank_zero_warn(
                f"`taps`: {', '.join(missing[:5])} did not run with gradients in {_PATIENCE} training steps, so "
                f"{type(self).__name__} adds nothing. Name modules that the training step calls."
            )

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the term, unweighted."""
        self._steps += 1
        if self._manual is not None:
            self._manual.end_batch(trained=bool(self._logs), counted=trainer.global_step > self._before)
        if self._ascent is not None and self.strength > 0:
            self._follow(trainer, self._ascent)
        if self._logs and is_logging_step(trainer):
            self._write_log(pl_module, self._logs)
        self._logs = {}

    def _follow(self, trainer: "Trainer", ascent: Ascent) -> None:
        done, of = step_of(trainer), total_steps(trainer)
        loss = trainer.callback_metrics.get(self.monitor or "")
        if loss is None or of is None or done - self._looked < max(1, of // READINGS):
            return
        loss = trainer.strategy.reduce(torch.as_tensor(loss, dtype=torch.float32), reduce_op="mean")  # of all ranks
        ascent.read(float(loss), steps=done - self._looked, done=done, of=of)
        self._looked = done

    def _record(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if not self._open or not torch.is_grad_enabled() or recomputing():
            return
        for _, tensor in tensors_in(result):
            if tensor.is_floating_point() and tensor.requires_grad:
                # The copy is what gets the gradient: an operation in place would change the tensor itself.
                self._calls.append((name, tensor, tensor.clone()))
                return

    def _penalties(self) -> list[Penalty]:
        calls, self._calls = self._calls, []
        self._seen |= {name for name, _, _ in calls}
        if not calls:
            return []
        assert self._trainer is not None
        strength = self.strength_at(step_of(self._trainer))
        penalties, values = [], []
        with no_autocast(calls[0][1].device), torch.enable_grad():
            for _, source, copy in calls:
                value, gradient = self._value_and_gradient(copy)
                values.append(value)
                penalties.append(Penalty(value * strength, [(copy, gradient * strength)], source))
        self._logs = {
            f"activation/{self.kind}": torch.stack(values).mean(),
            "activation/strength": strength,
        }
        return penalties

    def _value_and_gradient(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        leaf = activations.detach().float().requires_grad_()
        units_last = leaf.movedim(1, -1) if leaf.ndim == 4 else leaf
        value = self._omega()(units_last)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    def _omega(self) -> Callable[[Tensor], Tensor]:
        k = self.k
        if k is not None:
            return lambda a: tail_energy(a, k)
        return activation_l1 if self.kind == "l1" else rectified_l1
