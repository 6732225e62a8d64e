"""Top-k sparsity: after each step only the largest weights stay."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from legibility.lightning_plugins.foundation._callback import check_share
from legibility.lightning_plugins.sparsity._schedule import Schedule
from legibility.lightning_plugins.sparsity._weight_step import Stepped, WeightStep
from legibility.lightning_plugins.sparsity.weights._latent import settle
from legibility.lightning_plugins.sparsity.weights._weights import local
from legibility.losses import hard_threshold, in_pieces, magnitude_threshold, soft_threshold

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_TOLERANCE = 1e-3  # of the kept weights: most steps then need one look at the weights


class TopKSparsity(WeightStep):
    r"""Keeps the largest weights after each optimizer step and sets all others to exactly zero.

    .. math:: w_i \leftarrow w_i\,[\,|w_i| > t\,], \qquad |\{i : |w_i| > t\}| = k_t = \mathrm{round}(f_t N),
              \qquad f_t = 1 - \mathrm{sparsity} \cdot s_t

    with s the schedule's level and N the number of weights of a tensor, or of all targets of an optimizer. Weights that
    were dropped get gradients and moments like any other: they come back when a step makes them large enough. Up to
    0.1 % more than k_t may stay; exactly that many do at the last step before healing, or of all (but for ties, which stay).

    Else a dropped weight starts from zero again at each step. Latent, all learn on beneath the threshold, and the model
    computes with what stands above it:

    .. math:: z \leftarrow w + r, \qquad w \leftarrow \mathrm{sign}(z)\,\max(|z| - t, 0), \qquad r \leftarrow z - w,
              \qquad |\{i : |z_i| > t\}| = k_t

    with w as the optimizer's step left it. One more tensor for each weight. On a language model this cost .07 nats less at
    90 % zeros, with a schedule that is through well before healing (recipe `sparsity_lm`).

    Args:
        sparsity: Share of zeros in the end, in [0, 1). 0 does nothing at all.
        targets: Shell patterns over parameter names.
        exclude: Patterns to leave out, beyond biases, norms, embeddings, 1-D and parametrised parameters.
        scope: "tensor" keeps the same share of each weight; "global" compares all targets of an optimizer; "2:4", with
            ``sparsity=0.5``, ends with two of each four weights of a row, as :func:`to_torch_sparse` hands them over: on
            the way, the smaller two of each four are what may go. On a language model this cost .006 +- .020 nats more than
            "tensor" at the same half (5 seeds of ``legibility run sparsity_lm --arm top-k-0.50`` with and without
            ``--trainer.callbacks.scope=2:4``).
        minimum_per_row: Weights that each row (the inputs of one unit) keeps in any case; with it, more than k may stay.
        heal: Share of the steps, in [0, 1), at the end, during which the zeros no longer move.
        schedule: Way from dense to sparse over the steps before healing.
        total_steps: Number of optimizer steps, where the trainer can't tell.
        latent: Threshold latent weights, softly.

    Raises:
        ValueError: Before the first step: a sparsity outside of [0, 1), a pattern that matches nothing, an unknown
            number of steps, targets that no optimizer steps, "2:4" of another sparsity or of weights that are no matrices of
            4 n columns, "global" over weights that are not all sharded alike, ``latent`` with "2:4" or
            ``minimum_per_row``, whose kept weights may lie below the threshold.

    Sharded weights (FSDP2, FSDP1) are counted over all ranks. For "2:4" and ``minimum_per_row``, where rows are cut (FSDP1,
    tensor parallelism by columns), each rank makes one weight at a time whole.

    Logs ``legibility/top_k/zeros`` and ``legibility/top_k/strength`` (the sparsity asked for in the end).

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[TopKSparsity(0.9)], logger=False, enable_checkpointing=False)

    Source: Gao et al., "Weight-sparse transformers have interpretable circuits", arXiv:2511.13653, 2025, without its
    changes to learning rate and gradients. Latent: regularised dual averaging (Xiao 2010), the threshold from the wanted
    share; soft thresholds as in Kusupati et al., "Soft threshold weight reparameterization", 2020, there learnt.
    """

    term = "top_k"
    takes_flat_pieces = True

    def __init__(
        self,
        sparsity: float,
        targets: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        scope: Literal["tensor", "global", "2:4"] = "tensor",
        minimum_per_row: int = 0,
        heal: float = 0.0,
        schedule: Schedule | None = None,
        total_steps: int | None = None,
        latent: bool = False,
    ) -> None:
        schedule = Schedule.anneal() if schedule is None else schedule
        if max(level for _, level in schedule.knots) > 1:
            raise ValueError(f"`schedule` leads from dense (0) to sparse (1); got levels above 1: {schedule.knots}.")
        super().__init__(targets, exclude, schedule, heal, total_steps)
        self.sparsity = check_share(sparsity, "sparsity")
        if scope not in ("tensor", "global", "2:4"):
            raise ValueError(f'`scope` must be "tensor", "global" or "2:4", got {scope!r}.')
        if scope == "2:4" and (sparsity != 0.5 or minimum_per_row):
            raise ValueError(
                f'`scope` = "2:4" leaves half of each row: give `sparsity=0.5` (got {sparsity}) and no minimum.'
            )
        self.scope = scope
        if isinstance(minimum_per_row, bool) or not isinstance(minimum_per_row, int) or minimum_per_row < 0:
            raise ValueError(f"`minimum_per_row` is a number of weights from 0, got {minimum_per_row!r}.")
        self.minimum_per_row = minimum_per_row
        if latent and (scope == "2:4" or minimum_per_row):
            raise ValueError(
                '`latent` shrinks weights by one threshold; `scope="2:4"` and `minimum_per_row` keep some that lie below '
                "it. Leave one of them out."
            )
        self.latent = latent

    def _begin(self, trainer: "Trainer", fresh: bool) -> None:
        spread = {name: _spread(weight) for name, weight in self._data().items()}
        alike, *others = spread
        if self.scope == "global" and (unlike := [name for name in others if spread[name] != spread[alike]]):
            raise ValueError(
                f'`scope` = "global" adds counts up over the ranks that share a weight out, and {alike} and {unlike[0]} are '
                'not shared out alike. Leave one kind out by `exclude`, or use scope="tensor".'
            )
        layouts = {name: self._layout(weight) for name, weight in self._weights.items()}
        shapes = {name: (layouts[name] or weight).shape for name, weight in self._weights.items()}
        odd = [name for name, shape in shapes.items() if len(shape) != 2 or shape[1] % 4]
        if self.scope == "2:4" and odd:
            raise ValueError(f'`scope` = "2:4" needs matrices of 4 n columns, not {odd[0]}: leave it out by `exclude`.')
        if self.latent:
            self._keep("taken", self._weights)

    @property
    def strengths(self) -> dict[str, float]:
        """The sparsity asked for, under the name of the term."""
        return {"top_k": self.sparsity}

    def _move(self, stepped: Sequence[Stepped], optimizer: Optimizer, step: int) -> None:
        level = self.schedule.level(step, self._penalised)
        if not stepped or (level == 0 and not self.latent):
            return
        together = {"global": list(stepped)} if self.scope == "global" else {one.name: [one] for one in stepped}
        for name, members in together.items():
            size = sum(one.weight.numel() for one in members)
            key = f"threshold.{name}"
            weak = self._by_rows(members[0], _weaker_of_fours) if self.scope == "2:4" else None
            threshold = magnitude_threshold(
                [self._counted(one) for one in members] if weak is None else [local(members[0].weight)[weak]],
                round((1 - self.sparsity * level) * size if weak is None else (1 - level) * size / 2),
                start=self._memory.get(key),
                tolerance=0.0 if step == self._penalised - 1 else _TOLERANCE,
                total=_total(members[0].weight),
            )
            self._memory[key] = threshold
            for one in members:
                held = local(one.weight)
                if self.latent:
                    settle(held, self._tensors[f"taken.{one.name}"], partial(soft_threshold, threshold=threshold))
                elif weak is not None:
                    held.masked_fill_(weak & (held.abs() <= threshold), 0.0)
                elif self.minimum_per_row:
                    cut = partial(hard_threshold, threshold=threshold, minimum_per_row=self.minimum_per_row)
                    held.copy_(self._by_rows(one, cut))
                else:
                    for piece in in_pieces(held):
                        piece.copy_(hard_threshold(piece, threshold))

    def _by_rows(self, one: Stepped, act: Callable[[Tensor], Tensor]) -> Tensor:
        """For what this rank holds of a weight, what ``act`` makes of whole rows."""
        layout = self._layout(one.parameter)
        if layout is None or layout.rows_whole:
            return act(local(one.weight))
        return layout.part(act(layout.whole(local(one.weight))))

    def _counted(self, one: Stepped) -> Tensor:
        return self._tensors[f"taken.{one.name}"] + local(one.weight) if self.latent else local(one.weight)


def _weaker_of_fours(weight: Tensor) -> Tensor:
    """True at the smaller two of each four in a row."""
    fours = weight.abs().view(len(weight), weight.shape[1] // 4, 4)
    weaker = torch.zeros_like(fours, dtype=torch.bool)
    return weaker.scatter_(2, fours.topk(2, dim=2, largest=False).indices, True).view_as(weight)


def _spread(weight: Tensor) -> list[tuple[DeviceMesh, int]]:
    """The meshes' dimensions over which a weight is cut; none of one that each rank holds whole."""
    if not isinstance(weight, DTensor):
        return []
    return [(weight.device_mesh, i) for i, placement in enumerate(weight.placements) if not placement.is_replicate()]


def _total(weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Adds counts up over the ranks that hold shards of a weight."""
    spread = _spread(weight)

    def add(count: Tensor) -> Tensor:
        count = count.to(spread[0][0].device_type)
        for mesh, dimension in spread:
            dist.all_reduce(count, group=mesh.get_group(dimension))
        return count

    return add if spread else None
