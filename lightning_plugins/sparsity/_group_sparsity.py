"""Group sparsity: whole rows, columns, heads or neurons become exactly zero together."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from legibility.lightning_plugins.sparsity._penalty_step import PenaltyStep
from legibility.lightning_plugins.sparsity._schedule import Schedule
from legibility.lightning_plugins.sparsity._weight_step import Stepped, whole_model
from legibility.lightning_plugins.sparsity.structure._neurons import neurons
from legibility.lightning_plugins.sparsity.structure._remove_dead_neurons import Smaller, remove_dead_neurons
from legibility.lightning_plugins.sparsity.structure._units import Found, Units, heads, rows_or_columns
from legibility.lightning_plugins.sparsity.weights._optimizers import skipped
from legibility.lightning_plugins.sparsity.weights._weights import target_weights
from legibility.losses import soft_threshold

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_KINDS = ("rows", "columns", "heads", "neurons")


class GroupSparsity(PenaltyStep):
    r"""Makes groups of weights exactly zero by shortening every group after each optimizer step.

    For all groups g of one layer, |g| the number of weights in each, c the root mean square of all of them at the start
    of the fit, learning rate :math:`\eta_t` and T steps,

    .. math:: \tau_t = \mathrm{strength} \cdot c \cdot \frac{s_t}{\sum_u s_u} \cdot \frac{\eta_t}{\max_{u \le t} \eta_u},
              \qquad w_g \leftarrow w_g \max\Big(0,\, 1 - \frac{\tau \sqrt{|g|}}{\lVert w_g \rVert}\Big)

    with s the schedule's level, 0 while healing. :math:`c\sqrt{|g|}` is the typical initial length of a group, so
    ``strength`` is a budget in that unit: over the whole fit no group is shortened by more than ``strength`` of them,
    whatever its size, the learning rate and the number of steps. During healing, the last ``heal`` share of the
    steps, zeros stay zero.

    What a group is:

    - ``"rows"``: all weights of one output; the filters of a convolution.
    - ``"columns"``: all weights of one input.
    - ``"heads"``: of an ``nn.MultiheadAttention`` a head's queries, keys and values with their biases, and its columns
      of the output projection.
    - ``"neurons"``: a unit's row, its bias and the columns of the one layer that reads it, also through activations,
      dropout, pooling, flattening and batch norm. A layer whose output several others read (a residual stream), also in
      ``training_step``, or something unknown, is left out; which and why is printed once and kept in :attr:`left_out`.

    Dead neurons can be taken out: :meth:`remove`. A weight that is one unit's row and another's column is
    shortened for both.

    Args:
        strength: Budget in units of a typical initial group, >= 0. 0 does nothing at all. Or pattern -> budget: then
            the patterns are the targets, and the first that matches the name of a group's (first) weight counts.
        groups: "rows", "columns", "heads" or "neurons".
        targets: Shell patterns over parameter names; of neurons and heads, over those of their rows.
        exclude: Patterns to leave out, beyond norms, embeddings, 1-D and parametrised parameters. A layer whose groups
            would reach into an excluded weight is left out.
        heal: Share of the steps, in [0, 1), at the end.
        total_steps: Number of optimizer steps to spread the budget over, where the trainer can't tell.
        schedule: Level of the penalty over the steps before healing.
        follow_rate: Shrink the steps with the learning rate. False spends the whole budget along the schedule alone.
        sparsity: Wanted share of zero groups: ``strength`` (default 1) is multiplied by a factor that follows it. As many
            of the longest groups as shall stay never go, nor does the longest of a layer.
        loss_budget: Highest value of ``monitor`` that sparsity may cost.
        monitor: Name of a logged loss, for ``loss_budget``.

    Raises:
        ValueError: Before the first step: an unknown kind of group, negative or NaN strength, a pattern that matches
            nothing, no group at all (and why), an unknown number of steps, targets that no optimizer steps.

    Logs ``legibility/group/zeros`` (share of exact zeros among the targets), ``legibility/group/dead`` (share of zero
    groups), ``legibility/group/strength`` and, with a goal, ``legibility/group/factor``.

    Sharded weights (FSDP2, FSDP1) are shortened by the lengths of their whole groups. Of weights in bfloat16 or float16 what
    rounding takes is kept, one more float32 tensor for each.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> callback = GroupSparsity(20.0, groups="neurons")
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)

    Source: the group lasso of Yuan and Lin 2006, as a proximal step (Parikh and Boyd 2014, section 6.5.4); whole
    neurons after Scardapane et al., "Group sparse regularization for deep neural networks", 2017.
    """

    term = "group"

    def __init__(
        self,
        strength: float | Mapping[str, float] | None = None,
        groups: Literal["rows", "columns", "heads", "neurons"] = "rows",
        targets: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        heal: float = 0.35,
        total_steps: int | None = None,
        *,
        schedule: Schedule | None = None,
        follow_rate: bool = True,
        sparsity: float | None = None,
        loss_budget: float | None = None,
        monitor: str | None = None,
    ) -> None:
        super().__init__(
            strength, targets, exclude, schedule, heal, total_steps,
            follow_rate=follow_rate, sparsity=sparsity, loss_budget=loss_budget, monitor=monitor,
        )  # fmt: skip
        if groups not in _KINDS:
            raise ValueError(f"`groups` must be one of {', '.join(map(repr, _KINDS))}, got {groups!r}.")
        self.groups = groups
        #: Which layers have no groups, and why.
        self.left_out: dict[str, str] = {}
        self._units: list[Units] = []

    @property
    def state_key(self) -> str:
        """Distinguishes several instances by what they act on."""
        return self._generate_state_key(targets=self.targets, exclude=self.exclude, groups=self.groups)

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        super()._install(trainer, pl_module)
        if not self._weights:  # strength 0, and nothing there
            return
        found = self._find(whole_model(trainer, pl_module))
        self._units, self.left_out = list(found), found.left_out
        why = "; ".join(f"{name}: {reason}" for name, reason in found.left_out.items())
        if not found:
            raise ValueError(f'`groups` = "{self.groups}" finds none in this model. {why or "It has no such layer."}')
        if trainer.is_global_zero:
            listed = ", ".join(f"{units.name} ({units.count})" for units in found)
            print(f"GroupSparsity: {self.groups} of {listed}.{' Left out: ' + why + '.' if why else ''}")
        self._weights = {
            p.name: p.tensor for units in found for p in units.pieces if isinstance(p.tensor, nn.Parameter)
        }

    def _find(self, root: nn.Module) -> Found:
        if self.groups in ("rows", "columns"):
            return rows_or_columns(root, list(self._weights), rows=self.groups == "rows")
        everything = heads(root) if self.groups == "heads" else neurons(root)
        allowed = target_weights(root, "*", self.exclude) | self._weights
        found = Found()
        found.left_out = everything.left_out
        for units in everything:
            matrices = [piece.name for piece in units.pieces if len(piece.shape) > 1]
            missing = [name for name in matrices if name not in allowed]
            if missing or any(_matches(piece.name, self.exclude) for piece in units.pieces):
                found.left_out[units.name] = f"{', '.join(missing) or 'its bias'} is excluded"
            elif matrices[0] in self._weights:
                found.append(units)
        return found

    def _begin(self, trainer: "Trainer", fresh: bool) -> None:
        self._budget = {units.name: self._budget_of(units.pieces[0].name) for units in self._units}
        if fresh:
            for units in self._units:
                mean = units.lengths().square().mean() / units.size
                self._memory[f"rms.{units.name}"] = float(mean.sqrt())
        self._keep_rounding()
        super()._begin(trainer, fresh)

    def _move(self, stepped: Sequence[Stepped], optimizer: Optimizer, step: int) -> None:
        by_name = {one.name: one for one in stepped}
        ours = [units for units in self._units if units.pieces[0].name in by_name]
        for units, spared in zip(ours, self._spared(ours), strict=True):
            first = by_name[units.pieces[0].name]
            size = self._memory[f"rms.{units.name}"]
            each = self._threshold(self._budget[units.name], size, first.pace, step)
            if each > 0:
                skip = skipped(optimizer, first.weight.device)
                by = each * units.size**0.5 * (1.0 if skip is None else 1 - skip)
                length = units.lengths()
                left = soft_threshold(length, by)
                # A length of 0 keeps nothing: 0 / 1 instead of 0 / 0.
                left = left if spared is None else torch.where(spared & (left == 0), length, left)
                factors = left / length.masked_fill(length == 0, 1.0)
                for piece in units.pieces:
                    piece.scale(factors, self._rounding(piece.name))

    def _spared(self, ours: Sequence[Units]) -> Sequence[Tensor | None]:
        """With a goal for the sparsity, the groups that must not go: as many of the longest as shall stay, one of each layer.

        Where scale is of no account (before a norm), all groups would shrink alike, and all go at once.
        """
        goal = None if self._ascent is None else self._ascent.sparsity
        if goal is None or not ours:
            return [None] * len(ours)
        sizes = [u.lengths() / (self._memory[f"rms.{u.name}"] * u.size**0.5 + 1e-30) for u in ours]
        everything = torch.cat([size.to(sizes[0].device) for size in sizes])
        cut = everything.sort(descending=True).values[max(0, math.ceil((1 - goal) * len(everything)) - 1)]
        return [size >= torch.minimum(cut.to(size.device), size.max()) for size in sizes]

    def _dead(self) -> Tensor:
        stepped = [units for units in self._units if self._is_stepped(units.pieces[0].name)]
        dead = [(units.lengths() == 0).sum() for units in stepped]
        return torch.stack(dead).sum() / sum(units.count for units in stepped)

    def _reached(self) -> Tensor:
        return self._dead()

    def _to_log(self) -> dict[str, Tensor | float]:
        return {"dead": self._dead()} | super()._to_log()

    @staticmethod
    def remove(model: nn.Module) -> Smaller:
        """The smaller network without its dead neurons, equal outputs: :func:`remove_dead_neurons`.

        Heads, rows and columns that are zero stay in place: ``nn.MultiheadAttention`` has no smaller form.
        """
        return remove_dead_neurons(model)

    def _uninstall(self) -> None:
        super()._uninstall()
        self._units = []


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
