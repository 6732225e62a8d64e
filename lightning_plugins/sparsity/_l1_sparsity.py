"""L1 sparsity by proximal steps: true zeros, independent of how the loss is optimised."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from legibility.lightning_plugins.foundation._callback import (
    LegibilityCallback,
    check_share,
    check_strength,
    is_logging_step,
    total_steps,
)
from legibility.lightning_plugins.sparsity._weights import target_weights
from legibility.losses import reweighted_soft_threshold, root_mean_square, soft_threshold

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class L1Sparsity(LegibilityCallback):
    r"""Makes weights exactly zero by a soft threshold after each optimizer step.

    For each weight tensor W with RMS c at the start of the fit, learning rate :math:`\eta_t` and T steps,

    .. math:: \tau_t = \mathrm{strength} \cdot c \cdot \frac{s_t}{\sum_u s_u} \cdot \frac{\eta_t}{\max_{u \le t} \eta_u},
              \qquad w \leftarrow \mathrm{sign}(w)\,\max(|w| - \tau, 0)

    with s = 1 before healing and 0 during it. So ``strength`` is a budget: no weight is moved towards zero by more
    than ``strength`` initial RMS over the whole fit, whatever the learning rate and length. Reweighted (a log penalty),
    :math:`\tau_i = \tau\,\epsilon / (|w_i| + \epsilon)` with :math:`\epsilon = 0.1\,c`: large weights are spared.
    During healing, the last ``heal`` share of the steps, there is no penalty and zeros stay zero.

    Args:
        strength: Budget in units of initial RMS, >= 0. 0 does nothing at all.
        targets: Shell patterns over parameter names.
        exclude: Patterns to leave out, beyond biases, norms, embeddings, 1-D and parametrised parameters.
        reweighted: Spare large weights.
        heal: Share of the steps, in [0, 1), at the end.
        total_steps: Number of optimizer steps to spread the budget over, where the trainer can't tell.

    Raises:
        ValueError: Before the first step: negative or NaN strength, a pattern that matches nothing, an unknown
            number of steps.

    Logs ``legibility/l1/zeros`` (share of exact zeros among the targets) and ``legibility/l1/strength``.

    Weight decay on the same weights fights for the same end: see :class:`L1InsteadOfL2`.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[L1Sparsity(2.0)], logger=False, enable_checkpointing=False)

    Source: decoupled proximal step after AdamW (Loshchilov and Hutter 2019) with the proximal operator of L1 (Parikh
    and Boyd 2014); reweighting after Candes, Wakin and Boyd 2008.
    """

    def __init__(
        self,
        strength: float,
        targets: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        reweighted: bool = True,
        heal: float = 0.35,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.strength = check_strength(strength)
        self.targets = targets
        self.exclude = exclude
        self.reweighted = reweighted
        self.heal = check_share(heal, "heal")
        self.total_steps = total_steps
        self._weights: dict[str, nn.Parameter] = {}
        self._handles: list[RemovableHandle] = []
        self._reset()

    def _reset(self) -> None:
        self._start: int | None = None
        self._penalised = 1
        self._rms: dict[str, float] = {}
        self._zeros: dict[str, Tensor] = {}
        # One entry for each optimizer (steps done) and for each parameter group (highest learning rate so far).
        self._done: dict[str, int] = {}
        self._peak: dict[str, float] = {}

    @property
    def state_key(self) -> str:
        """Distinguishes several instances by what they act on."""
        return self._generate_state_key(targets=self.targets, exclude=self.exclude)

    @property
    def strengths(self) -> dict[str, float]:
        """The budget, under the name of the term."""
        return {"l1": self.strength}

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._weights = target_weights(pl_module, self.targets, self.exclude)
        self._reset()

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Everything is restored and the number of steps is known: takes the initial RMS, hooks the optimizers."""
        if self.strength == 0:
            return
        state, self._pending = self._pending, None
        if state is not None:
            self._start, self._done, self._peak = state["start"], dict(state["done"]), dict(state["peak"])
            self._rms = {name: state["rms"][name] for name in self._weights}
        else:
            self._start = trainer.global_step
            self._rms = {name: float(root_mean_square(weight.detach())) for name, weight in self._weights.items()}
        end = total_steps(trainer) if self.total_steps is None else self._start + self.total_steps
        if end is None:
            raise ValueError(
                "`total_steps`: the trainer can't tell how long this fit is, and the strength is a budget over all of "
                "it. Give `L1Sparsity(..., total_steps=N)`, or `max_steps`/`max_epochs` to the Trainer."
            )
        self._penalised = max(1, round((end - self._start) * (1 - self.heal)))
        for index, optimizer in enumerate(trainer.optimizers):
            if self._done.get(str(index), 0) >= self._penalised:
                # Resumed while healing: the frozen zeros are the weights that are zero.
                self._freeze(optimizer)
            self._handles.append(optimizer.register_step_post_hook(self._after_step(str(index))))

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the share of exact zeros."""
        self._steps += 1
        if self.strength > 0 and is_logging_step(trainer):
            zeros = sum((w.detach() == 0).sum() for w in self._weights.values())
            total = sum(w.numel() for w in self._weights.values())
            self._write_log(pl_module, {"l1/zeros": torch.as_tensor(zeros) / total, "l1/strength": self.strength})

    def state_dict(self) -> dict[str, Any]:
        """Step counts and initial RMS: plain numbers, so that a resumed fit goes on exactly."""
        if self._start is None:
            return {}
        return {"start": self._start, "done": dict(self._done), "peak": dict(self._peak), "rms": dict(self._rms)}

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._weights, self._zeros = [], {}, {}

    def _after_step(self, index: str) -> Callable[..., None]:
        names = {id(weight): name for name, weight in self._weights.items()}

        def step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with self._timed(), torch.no_grad():
                done = self._done.get(index, 0)
                for number, group in enumerate(optimizer.param_groups):
                    share = self._share(f"{index}.{number}", float(group["lr"]))
                    found = [(names[id(p)], p) for p in group["params"] if id(p) in names and p.grad is not None]
                    for name, parameter in found:
                        weight = parameter.detach()
                        if done >= self._penalised:
                            weight.masked_fill_(self._zeros[name], 0.0)
                        else:
                            weight.copy_(self._shrunk(name, weight, share, optimizer))
                self._done[index] = done + 1
                if self.heal > 0 and done + 1 == self._penalised:
                    self._freeze(optimizer)

        return step

    def _share(self, group: str, rate: float) -> float:
        """The share of the budget that this step of a parameter group spends."""
        self._peak[group] = max(self._peak.get(group, 0.0), rate)
        return rate / self._peak[group] / self._penalised if self._peak[group] > 0 else 0.0

    def _shrunk(self, name: str, weight: Tensor, share: float, optimizer: Optimizer) -> Tensor:
        threshold: float | Tensor = self.strength * self._rms[name] * share
        # A fused optimizer under a gradient scaler is stepped even on overflow and skips inside: then so do we.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            threshold = threshold * (1 - found_inf.to(weight.device).reshape(()))
        if self.reweighted:
            return reweighted_soft_threshold(weight, threshold, epsilon=0.1 * self._rms[name] + 1e-30)
        return soft_threshold(weight, threshold)

    def _freeze(self, optimizer: Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._zeros |= {name: w.detach() == 0 for name, w in self._weights.items() if id(w) in held}
