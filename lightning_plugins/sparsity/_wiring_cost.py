"""Wiring cost: weights are paid by the distance of the neurons that they connect, and neurons change places."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from legibility.lightning_plugins.foundation._callback import check_positive, check_strength
from legibility.lightning_plugins.sparsity._penalty_step import PenaltyStep
from legibility.lightning_plugins.sparsity._schedule import Schedule
from legibility.lightning_plugins.sparsity._weight_step import Stepped, whole_model
from legibility.lightning_plugins.sparsity._wiring import Wiring
from legibility.lightning_plugins.sparsity.structure._neurons import neurons
from legibility.lightning_plugins.sparsity.structure._units import Found, Piece
from legibility.lightning_plugins.sparsity.weights._latent import settle_rounded
from legibility.lightning_plugins.sparsity.weights._optimizers import skipped
from legibility.lightning_plugins.sparsity.weights._weights import local
from legibility.losses import reweighted_soft_threshold, root_mean_square, soft_threshold

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class WiringCost(PenaltyStep):
    r"""L1 by proximal steps whose threshold grows with the length of the connection; neurons look for short ones.

    The neurons of each layer of a chain stand on a line of length 1, at :math:`x_i = (\mathrm{place}_i + 1/2) / n`. For
    the weight between units i and j, c the initial RMS of its tensor and T steps,

    .. math:: \tau_{ij,t} = \mathrm{strength} \cdot c \cdot \frac{s_t}{\sum_u s_u} \cdot
              \frac{\eta_t}{\max_{u \le t} \eta_u} \cdot \frac{l_0 + \alpha\,|x_i - x_j|}{\overline{l_0 + \alpha\,|x - x'|}}

    and :math:`w \leftarrow \mathrm{sign}(w) \max(|w| - \tau, 0)`, or reweighted as in :class:`L1Sparsity`. The mean price in
    a layer is 1: ``strength`` means what it means there, and so does healing.

    Every ``swap_every`` steps each unit, the heaviest of its line first, tries all places of its line and changes with the unit with
    whom that saves most wire, :math:`\sum c\,|w_{ij}|\,\mathrm{price}_{ij}`. What moves are the places alone: weights,
    moments and averages stay where they are, so a swap changes nothing but the prices. :meth:`arrange` moves the
    neurons themselves, with all that belongs to them, to where they stand.

    A chain is a sequence of linear layers or convolutions each of which alone reads the one before, as
    :class:`GroupSparsity` finds neurons. Weights outside of chains have no places: they are left out, and which and why
    is printed once and kept in :attr:`left_out`. So are layers whose output several others read (a residual stream).

    Args:
        strength: Budget in units of initial RMS, >= 0. 0 does nothing at all. Or pattern -> budget.
        targets: Shell patterns over the names of weights.
        exclude: Patterns to leave out.
        swap_every: Steps between two searches for better places; 0 for never.
        nearest: :math:`l_0`, the price of a connection straight ahead.
        slope: :math:`\alpha`, the price of distance; 0 makes it :class:`L1Sparsity`.
        reweighted: Spare large weights.
        heal: Share of the steps, in [0, 1), at the end.
        total_steps: Number of optimizer steps to spread the budget over, where the trainer can't tell.
        schedule: Level of the penalty over the steps before healing; by default low, high, low.
        follow_rate: Shrink the steps with the learning rate.
        sparsity: Wanted share of exact zeros; ``strength`` (default 1) is multiplied by a factor that follows it.
        loss_budget: Highest value of ``monitor`` that sparsity may cost.
        monitor: Name of a logged loss, for ``loss_budget``.

    Raises:
        ValueError: Before the first step: no chain at all (and why), numbers out of range, a pattern that matches nothing,
            an unknown number of steps.

    Logs ``legibility/wiring/zeros``, ``legibility/wiring/strength``, ``legibility/wiring/length`` (mean length of a
    connection, weighted by size; .33 where size and place have nothing to do with each other) and, with a goal,
    ``legibility/wiring/factor``.

    Sharded weights (FSDP2, FSDP1) pay the prices of whole ones; :meth:`arrange` needs them whole.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> callback = WiringCost(20.0)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)

    Source: Liu, Gan and Tegmark, "Seeing is believing: brain-inspired modular training for mechanistic
    interpretability", 2023; here by proximal steps, and with places that move in place of weights.
    """

    term = "wiring"

    def __init__(
        self,
        strength: float | Mapping[str, float] | None = None,
        targets: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        *,
        swap_every: int = 200,
        nearest: float = 0.1,
        slope: float = 1.0,
        reweighted: bool = True,
        heal: float = 0.35,
        total_steps: int | None = None,
        schedule: Schedule | None = None,
        follow_rate: bool = True,
        sparsity: float | None = None,
        loss_budget: float | None = None,
        monitor: str | None = None,
    ) -> None:
        super().__init__(
            strength, targets, exclude, schedule or Schedule.low_high_low(), heal, total_steps,
            follow_rate=follow_rate, sparsity=sparsity, loss_budget=loss_budget, monitor=monitor,
        )  # fmt: skip
        if isinstance(swap_every, bool) or not isinstance(swap_every, int) or swap_every < 0:
            raise ValueError(f"`swap_every` is a number of steps, or 0 for never, got {swap_every!r}.")
        self.swap_every = swap_every
        self.nearest = check_positive(nearest, "nearest")
        self.slope = check_strength(slope, "slope")
        self.reweighted = reweighted
        #: Which layers have no places, and why.
        self.left_out: dict[str, str] = {}
        #: Where everything stands; kept after the fit.
        self.wiring: Wiring | None = None
        self._found = Found()

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        super()._install(trainer, pl_module)
        if not self._weights:  # strength 0, and nothing there
            return
        found, everything = Found(), neurons(whole_model(trainer, pl_module))
        self.left_out = everything.left_out
        found += [
            units for units in everything if all(p.name in self._weights for p in units.pieces if len(p.shape) > 1)
        ]
        self.wiring, self._found = Wiring(found, self.nearest, self.slope), found
        why = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
        if not found:
            raise ValueError(
                f"`targets` = {self.targets!r} hold no two layers of which one alone reads the other. {why}."
            )
        if trainer.is_global_zero:
            others = [name for name in self._weights if name not in self.wiring.wires]
            listed = f" Outside of chains: {', '.join(others)} ({why})." if others else ""
            print(f"WiringCost: {', '.join(self.wiring.wires)}.{listed}")
        self._weights = {name: weight for name, weight in self._weights.items() if name in self.wiring.wires}

    def _begin(self, trainer: "Trainer", fresh: bool) -> None:
        assert self.wiring is not None
        self._budget = {name: self._budget_of(name) for name in self._weights}
        for line in self.wiring.places.keys() & self._tensors.keys():
            self.wiring.move(line, self._tensors[line].clone())
        if fresh:
            for name, weight in self._data().items():
                self._memory[f"rms.{name}"] = float(root_mean_square(weight))
        self._keep_rounding()
        super()._begin(trainer, fresh)

    def _move(self, stepped: Sequence[Stepped], optimizer: Optimizer, step: int) -> None:
        assert self.wiring is not None
        for one in stepped:
            size = self._memory[f"rms.{one.name}"]
            threshold = self._threshold(self._budget[one.name], size, one.pace, step)
            if threshold > 0:
                held, rounding = local(one.weight), self._rounding(one.name)
                skip = skipped(optimizer, held.device)
                each = local(self.wiring.prices(one.name)) * (threshold if skip is None else threshold * (1 - skip))
                shrink = partial(self._shrunk, each=each, size=size)
                if rounding is None:
                    held.copy_(shrink(held))
                else:
                    settle_rounded(held, rounding, shrink, whole=True)
        if self.swap_every > 0 and (step + 1) % self.swap_every == 0:
            self.wiring.improve({name: self._budget[name] * self._memory[f"rms.{name}"] for name in self._weights})

    def _shrunk(self, weight: Tensor, each: Tensor, size: float) -> Tensor:
        if self.reweighted:
            return reweighted_soft_threshold(weight, each, epsilon=0.1 * size + 1e-30)
        return soft_threshold(weight, each)

    def state_dict(self) -> dict[str, Any]:
        """As of all; and where everything stands."""
        if self.wiring is not None:
            self._tensors |= self.wiring.places
        return super().state_dict()

    def _to_log(self) -> dict[str, Tensor | float]:
        assert self.wiring is not None
        lengths, loads = [], []
        for wires in self.wiring.wires.values():
            distance = self.wiring.positions(wires.writes)[:, None] - self.wiring.positions(wires.reads)
            loads.append(wires.loads())
            lengths.append((loads[-1] * distance.abs().to(loads[-1].device)).sum())
        total = torch.stack([load.sum() for load in loads]).sum()
        return {"length": torch.stack(lengths).sum() / total.clamp(min=1e-30)} | super()._to_log()

    @torch.no_grad()
    def arrange(self, optimizers: Sequence[Optimizer] = ()) -> None:
        """Moves the hidden neurons themselves to their places, so that the weights' own order shows the modules.

        Rows, biases, a norm's entries between, the columns that read them and the optimizers' moments go along. The function of the
        network stays, up to the order of sums, and so does its training.

        Args:
            optimizers: Those that train the network further, ``trainer.optimizers``.

        Raises:
            RuntimeError: Before the first fit.
            ValueError: Weights are sharded (a DTensor, or by FSDP1).
        """
        if self.wiring is None:
            raise RuntimeError("There are no places before the first fit.")
        for units in self._found:
            if any(piece.cut or hasattr(piece.tensor, "full_tensor") for piece in units.pieces):
                raise ValueError("`arrange` needs whole weights; these are sharded.")
            order = self.wiring.places[units.name].argsort()
            for piece in (*units.pieces, *units.between):
                _reorder(piece, order, optimizers, self._rounding(piece.name))
            self.wiring.move(units.name, torch.arange(len(order)))
        self._zeros = {name: weight == 0 for name, weight in self._weights.items() if name in self._zeros}


def _reorder(piece: Piece, order: Tensor, optimizers: Sequence[Optimizer], rounding: Tensor | None) -> None:
    moments = [] if rounding is None else [rounding]
    moments += [
        value
        for optimizer in optimizers
        for value in optimizer.state.get(piece.tensor, {}).values()
        if isinstance(value, Tensor) and value.shape == piece.tensor.shape
    ]
    gradients = [] if not isinstance(piece.tensor, nn.Parameter) or piece.tensor.grad is None else [piece.tensor.grad]
    for tensor in (piece.tensor, *moments, *gradients):
        tensor.copy_(tensor.index_select(piece.dim, piece.slices(order).to(tensor.device)))
