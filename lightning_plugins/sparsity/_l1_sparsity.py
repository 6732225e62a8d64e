"""L1 sparsity by proximal steps: true zeros, independent of how the loss is optimised."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from legibility.lightning_plugins.sparsity._penalty_step import PenaltyStep
from legibility.lightning_plugins.sparsity._schedule import Schedule
from legibility.lightning_plugins.sparsity._weight_step import Stepped
from legibility.lightning_plugins.sparsity.weights._latent import settle, settle_rounded
from legibility.lightning_plugins.sparsity.weights._optimizers import skipped
from legibility.lightning_plugins.sparsity.weights._weights import local, summed
from legibility.losses import in_pieces, reweighted_soft_threshold, root_mean_square, soft_threshold

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class L1Sparsity(PenaltyStep):
    r"""Makes weights exactly zero by a soft threshold after each optimizer step.

    For each weight tensor W with RMS c at the start of the fit, learning rate :math:`\eta_t` and T steps,

    .. math:: \tau_t = \mathrm{strength} \cdot c \cdot \frac{s_t}{\sum_u s_u} \cdot \frac{\eta_t}{\max_{u \le t} \eta_u},
              \qquad w \leftarrow \mathrm{sign}(w)\,\max(|w| - \tau, 0)

    with s the schedule's level, 0 while healing. So ``strength`` is a budget: no weight is moved towards zero by more
    than ``strength`` initial RMS over the whole fit, whatever the learning rate and length. Reweighted (a log penalty),
    :math:`\tau_i = \tau\,\epsilon / (|w_i| + \epsilon)` with :math:`\epsilon = 0.1\,c`: large weights are spared.
    Preconditioned, :math:`\tau_i = \tau\,\bar d / \max(d_i, f \bar d)` with :math:`d = \sqrt{v}` the root of Adam's
    second moment, :math:`\bar d` its mean over the tensor and f the floor: weights that the loss hardly touches go first.
    During healing, the last ``heal`` share of the steps, there is no penalty and zeros stay zero.

    Latent, what the thresholds took is kept, and what weights at zero learn adds up beneath the threshold until it passes:

    .. math:: z \leftarrow w + r, \qquad w \leftarrow S_{\tau_1 + \dots + \tau_t}(z), \qquad r \leftarrow z - w

    with w as the optimizer's step left it and S the soft threshold, reweighted or not. The budget is then what the last
    threshold comes to. One more tensor for each weight.

    Args:
        strength: Budget in units of initial RMS, >= 0. 0 does nothing at all. Or pattern -> budget: then the patterns
            are the targets, and the first that matches a weight's name counts.
        targets: Shell patterns over parameter names. Embeddings and low-rank adapters are taken only if named in full;
            of an embedding, rows without gradient stay as they are.
        exclude: Patterns to leave out, beyond biases, norms, embeddings, 1-D and parametrised parameters.
        reweighted: Spare large weights.
        heal: Share of the steps, in [0, 1), at the end.
        total_steps: Number of optimizer steps to spread the budget over, where the trainer can't tell.
        schedule: Level of the penalty over the steps before healing.
        follow_rate: Shrink the steps with the learning rate, as the penalty's gradient would. False spends the whole
            budget along the schedule alone.
        preconditioned: The floor f in (0, 1], or None. Needs an Adam-like optimizer.
        sparsity: Wanted share of exact zeros among the targets: ``strength`` (default 1) is multiplied by a factor that
            follows it (:class:`~legibility.lightning_plugins.sparsity._ascent.Ascent`).
        loss_budget: Highest value of ``monitor`` that sparsity may cost: the factor rises while the loss is below it.
        monitor: Name of a logged loss, for ``loss_budget``.
        latent: Keep what the thresholds took.

    Raises:
        ValueError: Before the first step: negative or NaN strength, a pattern that matches nothing, an unknown
            number of steps, targets that no optimizer steps, ``preconditioned`` without Adam's moments or with
            ``latent``.

    Logs ``legibility/l1/zeros`` (share of exact zeros among the targets), ``legibility/l1/strength`` and, with a goal,
    ``legibility/l1/factor``.

    Of weights in bfloat16 or float16 what rounding takes is kept, one more float32 tensor for each: most steps alone would
    round to nothing.
    Weight decay on the same weights fights for the same end: see :class:`L1InsteadOfL2`.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[L1Sparsity(2.0)], logger=False, enable_checkpointing=False)
        >>> later_layers_more = L1Sparsity({"net.0.*": 100.0, "*": 200.0}, schedule=Schedule.warm_up(0.3))
        >>> nine_in_ten = L1Sparsity(sparsity=0.9)

    Source: decoupled proximal step after AdamW (Loshchilov and Hutter 2019) with the proximal operator of L1 (Parikh
    and Boyd 2014); reweighting after Candes, Wakin and Boyd 2008; preconditioning after ProxGen (Yun, Lozano and Yang
    2021); latent as regularised dual averaging (Xiao 2010), with any optimizer in place of its gradient steps.
    """

    term = "l1"
    takes_flat_pieces = True

    def __init__(
        self,
        strength: float | Mapping[str, float] | None = None,
        targets: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        reweighted: bool = True,
        heal: float = 0.35,
        total_steps: int | None = None,
        *,
        schedule: Schedule | None = None,
        follow_rate: bool = True,
        preconditioned: float | None = None,
        sparsity: float | None = None,
        loss_budget: float | None = None,
        monitor: str | None = None,
        latent: bool = False,
    ) -> None:
        super().__init__(
            strength, targets, exclude, schedule, heal, total_steps,
            follow_rate=follow_rate, sparsity=sparsity, loss_budget=loss_budget, monitor=monitor,
        )  # fmt: skip
        self.reweighted = reweighted
        if preconditioned is not None and not 0 < preconditioned <= 1:
            raise ValueError(f"`preconditioned` is a floor in (0, 1], got {preconditioned}.")
        if preconditioned is not None and latent:
            raise ValueError(
                "`preconditioned` and `latent` don't go together: moments change, a sum of thresholds can't."
            )
        self.preconditioned = preconditioned
        self.latent = latent

    def _begin(self, trainer: "Trainer", fresh: bool) -> None:
        if self.preconditioned is not None and not all("betas" in o.param_groups[0] for o in trainer.optimizers):
            raise ValueError(
                "`preconditioned` needs the second moments of an Adam-like optimizer; "
                f"got {', '.join(type(o).__name__ for o in trainer.optimizers)}. Leave it out."
            )
        self._budget = {name: self._budget_of(name) for name in self._weights}
        if fresh:
            for name, weight in self._data().items():
                self._memory[f"rms.{name}"] = float(root_mean_square(weight))
        if self.latent:
            self._keep("taken", self._weights)
            for name in self._weights:
                taken = self._tensors[f"taken.{name}"]
                self._tensors[f"total.{name}"] = self._tensors.get(f"total.{name}", taken.new_zeros(())).to(taken)
        else:
            self._keep_rounding()
        super()._begin(trainer, fresh)

    def _move(self, stepped: Sequence[Stepped], optimizer: Optimizer, step: int) -> None:
        for one in stepped:
            size = self._memory[f"rms.{one.name}"]
            threshold = self._threshold(self._budget[one.name], size, one.pace, step)
            if self.latent:
                self._shrink_latent(one, size, threshold, skipped(optimizer, one.weight.device))
                continue
            if threshold > 0:
                self._shrink(one, size, threshold, optimizer)

    def _shrink_latent(self, one: Stepped, size: float, threshold: float, skip: Tensor | None) -> None:
        total = self._tensors[f"total.{one.name}"]
        total += threshold if skip is None else threshold * (1 - skip)
        settle(
            local(one.weight), self._tensors[f"taken.{one.name}"], lambda latent: self._proximal(latent, total, size)
        )

    def _shrink(self, one: Stepped, size: float, base: float, optimizer: Optimizer) -> None:
        threshold: float | Tensor = base
        moment = self._moment(one, optimizer) if self.preconditioned is not None else None
        skip = skipped(optimizer, one.weight.device)
        if skip is not None:
            threshold = threshold * (1 - skip)
        if moment is not None and self.preconditioned is not None:
            roots = moment.to(torch.float32).sqrt()
            mean = summed(roots) / roots.numel()
            root = local(roots)
            # Where nothing has a gradient yet, all are equal: 1.
            factor = torch.where(mean > 0, mean / root.clamp(min=self.preconditioned * mean), 1.0)
            threshold = threshold * factor
        held, rounding, whole = local(one.weight), self._rounding(one.name), moment is not None
        if rounding is not None:
            settle_rounded(held, rounding, lambda exact: self._proximal(exact, threshold, size), whole=whole)
            return
        for piece in [held] if whole else in_pieces(held):
            piece.copy_(self._proximal(piece, threshold, size))

    def _moment(self, one: Stepped, optimizer: Optimizer) -> Tensor | None:
        moment: Tensor | None = optimizer.state[one.parameter].get("exp_avg_sq")
        cut = self._cuts.get(id(one.parameter))
        if cut is None:
            return moment
        # A rank that holds nothing of the weight has no moments of it.
        return cut.seen(torch.zeros_like(one.parameter) if moment is None else moment)

    def _proximal(self, weight: Tensor, threshold: float | Tensor, size: float) -> Tensor:
        if self.reweighted:
            return reweighted_soft_threshold(weight, threshold, epsilon=0.1 * size + 1e-30)
        return soft_threshold(weight, threshold)
