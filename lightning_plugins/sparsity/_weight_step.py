"""What all callbacks share that change weights after the optimizer's step."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from legibility.lightning_plugins.foundation._callback import (
    LegibilityCallback,
    check_share,
    is_logging_step,
    total_steps,
)
from legibility.lightning_plugins.sparsity._schedule import Schedule
from legibility.lightning_plugins.sparsity.weights._flat_pieces import Cut, cuts, why_not, with_gradient
from legibility.lightning_plugins.sparsity.weights._latent import beneath
from legibility.lightning_plugins.sparsity.weights._layout import Layout, layout_of
from legibility.lightning_plugins.sparsity.weights._optimizers import check_stepped, is_stepped
from legibility.lightning_plugins.sparsity.weights._weights import (
    embedding_weights,
    local,
    penalisable_weights,
    rows_without_gradient,
    summed,
    target_weights,
)
from legibility.scores.flat_weights import wraps_flat

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class Stepped(NamedTuple):
    """A weight that an optimizer has just stepped.

    Attributes:
        name: Without wrappers' prefixes.
        parameter: The key of its optimizer state.
        weight: Its data, to be changed in place; of one that is sharded, a DTensor, flat under FSDP1.
        pace: Learning rate of its group over the highest so far, in [0, 1].
    """

    name: str
    parameter: nn.Parameter
    weight: Tensor
    pace: float


class WeightStep(LegibilityCallback):
    """Base of the callbacks that change weights after each optimizer step: sparsity that no loss can undo.

    A subclass implements ``_move`` (one step) and may implement ``_begin`` (the weights are known, so is the number of
    steps). For the last ``heal`` share of the steps nothing is moved, but what is zero stays zero.

    Averages of weights (EMA, SWA) are not sparse by themselves. Where they take the place of the trained weights, for an
    evaluation, at the end or in a checkpoint, they get the zeros that those have just then.

    Everything a resumed fit needs is kept as plain numbers and tensors: the steps of each optimizer, the highest learning
    rate of each parameter group, and what a subclass remembers in ``_memory`` (numbers) and ``_tensors``.
    """

    #: Under which name it logs.
    term = ""

    def __init__(
        self,
        targets: str | Sequence[str],
        exclude: str | Sequence[str],
        schedule: Schedule,
        heal: float,
        total_steps: int | None,
    ) -> None:
        super().__init__()
        self.targets = targets
        self.exclude = exclude
        self.schedule = schedule
        self.heal = check_share(heal, "heal")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"`schedule` must be a Schedule, such as `Schedule.warm_up(0.3)`; got {schedule!r}.")
        if total_steps is not None and (not isinstance(total_steps, int) or total_steps < 1):
            raise ValueError(f"`total_steps` is a number of optimizer steps from 1, or None; got {total_steps!r}.")
        self.total_steps = total_steps
        self._weights: dict[str, nn.Parameter] = {}
        self._embeddings: set[int] = set()
        self._cuts: dict[int, Cut] = {}
        self._handles: list[RemovableHandle] = []
        self._optimizers: list[Optimizer] = []
        self._reset()

    def _reset(self) -> None:
        self._start: int | None = None
        self._planned = 0
        self._penalised = 1
        self._zeros: dict[str, Tensor] = {}
        self._latest: dict[str, Tensor] = {}
        self._done: dict[str, int] = {}
        self._peak: dict[str, float] = {}
        self._memory: dict[str, float] = {}
        self._tensors: dict[str, Tensor] = {}
        self._layouts: dict[str, Layout] = {}
        self._dead_told: set[str] = set()

    def _begin(self, trainer: "Trainer", fresh: bool) -> None:
        """Everything is restored: remember what the first step needs, unless the fit is resumed (not fresh)."""

    def _move(self, stepped: Sequence[Stepped], optimizer: Optimizer, step: int) -> None:
        """Changes weights in place, at a step (from 0) out of ``_penalised``."""
        raise NotImplementedError

    @property
    def active(self) -> bool:
        """Whether it changes anything at all."""
        return any(strength > 0 for strength in self.strengths.values())

    @property
    def state_key(self) -> str:
        """Distinguishes several instances by what they act on."""
        return self._generate_state_key(targets=self.targets, exclude=self.exclude)

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        root = whole_model(trainer, pl_module)
        hidden = why_not(root)
        if self.active and hidden:
            raise ValueError(f"`targets`: {hidden}")
        self._cuts = cuts(root)
        # With nothing to do, nothing needs to be there.
        idle = not self.active and (hidden is not None or not penalisable_weights(root))
        self._weights = {} if idle else target_weights(root, self.targets, self.exclude)
        self._embeddings = embedding_weights(root)
        self._reset()

    def _seen(self, parameter: nn.Parameter) -> Tensor:
        """The data of a weight; of one that is sharded, a DTensor."""
        cut = self._cuts.get(id(parameter))
        return parameter.detach() if cut is None else cut.seen(parameter)

    def _data(self) -> dict[str, Tensor]:
        """All targets as :meth:`_seen`."""
        return {name: self._seen(parameter) for name, parameter in self._weights.items()}

    def _layout(self, parameter: nn.Parameter) -> Layout | None:
        """How a weight is sharded, if it is."""
        return layout_of(parameter, self._cuts.get(id(parameter)))

    def _keep(self, what: str, names: Iterable[str]) -> None:
        """For each of some targets a tensor in ``_tensors``, of the shape of what this rank holds of it."""
        for name in names:
            key, layout = f"{what}.{name}", self._layout(self._weights[name])
            self._tensors[key] = beneath(local(self._seen(self._weights[name])), self._tensors.get(key), layout)
            if layout is not None:
                self._layouts[key] = layout

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Everything is restored and the number of steps is known: hooks the optimizers.

        Raises:
            ValueError: An unknown number of steps, another one than the fit had that is resumed, or targets that no
                optimizer steps.
        """
        if not self.active:
            return
        self._optimizers = list(trainer.optimizers)
        check_stepped(type(self).__name__, self._weights, self._optimizers)
        state, self._pending = self._pending, None
        if state:
            self._start, self._done, self._peak = state["start"], dict(state["done"]), dict(state["peak"])
            self._memory, self._tensors = dict(state["memory"]), dict(state.get("tensors", {}))
        else:
            self._start = trainer.global_step
        end = total_steps(trainer) if self.total_steps is None else self._start + self.total_steps
        if end is None:
            raise ValueError(
                "`total_steps`: the trainer can't tell how long this fit is, and the schedule is one over all of "
                f"it. Give `{type(self).__name__}(..., total_steps=N)`, or `max_steps`/`max_epochs` to the Trainer."
            )
        planned = end - self._start
        if state and self.total_steps is None and state["planned"] != planned:
            raise ValueError(
                f"`total_steps`: this fit is planned for {planned} steps, the one it resumes was for {state['planned']}, "
                f"and the schedule is one over all of it. Give `{type(self).__name__}(..., total_steps={planned})` to "
                "both fits, or to this one the number that it shall count with from now on."
            )
        self._planned = planned
        self._penalised = max(1, round(planned * (1 - self.heal)))
        self._begin(trainer, fresh=not state)
        for index, optimizer in enumerate(trainer.optimizers):
            if self.heal > 0 and self._done.get(str(index), 0) >= self._penalised:
                # Resumed while healing: the frozen zeros are the weights that are zero.
                self._freeze(optimizer)
            self._handles.append(optimizer.register_step_post_hook(self._after_step(str(index))))

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the share of exact zeros."""
        self._steps += 1
        if self.active and is_logging_step(trainer):
            self._tell_dead()
            values: dict[str, Tensor | float] = {"zeros": self.zero_share()}
            values |= {"strength": next(iter(self.strengths.values()))} | self._to_log()
            self._write_log(pl_module, {f"{self.term}/{key}": value for key, value in values.items()})

    def _to_log(self) -> dict[str, Tensor | float]:
        return {}

    def zero_share(self) -> Tensor:
        """The share of exact zeros among the targets that are stepped; under a sharded strategy all ranks must ask."""
        weights = [weight for name, weight in self._data().items() if self._is_stepped(name)]
        zeros = sum(summed(weight == 0) for weight in weights)
        return torch.as_tensor(zeros) / max(1, sum(weight.numel() for weight in weights))

    def _is_stepped(self, name: str) -> bool:
        return not self._optimizers or is_stepped(self._weights[name], self._optimizers)

    def _tell_dead(self) -> None:
        """Says once of each target that nothing of it is left."""
        dead = {n for n, w in self._data().items() if w.numel() and int(summed(w != 0)) == 0} - self._dead_told
        if dead:
            self._dead_told |= dead
            rank_zero_warn(
                f"{type(self).__name__}: all of {', '.join(sorted(dead))} is zero now: where nothing goes around it, the "
                "model is a constant. Ask for less, or for the same over more steps. This is said once."
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and whole tensors, so that a resumed fit goes on exactly; with sharded weights all ranks must ask.

        Tensors that are put together from all ranks' pieces come to rank 0 alone, which writes checkpoints.
        """
        if self._start is None:
            return {}
        kept = {
            "start": self._start,
            "planned": self._planned,
            "done": self._done,
            "peak": self._peak,
            "memory": self._memory,
        }
        whole = {key: self._whole(key, tensor) for key, tensor in self._tensors.items()}
        tensors = {"tensors": {key: tensor for key, tensor in whole.items() if tensor is not None}} if whole else {}
        return {key: dict(value) if isinstance(value, dict) else value for key, value in kept.items()} | tensors

    def _whole(self, key: str, tensor: Tensor) -> Tensor | None:
        layout = self._layouts.get(key)
        if layout is None:
            return tensor.clone()
        whole = layout.whole(tensor)  # by all ranks
        return whole.cpu() if dist.get_rank() == 0 else None

    def __getstate__(self) -> dict[str, Any]:
        """Without pieces of sharded tensors, which are nothing without the other ranks."""
        here = {key: tensor for key, tensor in self._tensors.items() if key not in self._layouts}
        return super().__getstate__() | {"_layouts": {}, "_tensors": here}

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Looks where the trained weights are zero, before averages may take their place."""
        if not trainer.sanity_checking:
            self._look_at_zeros()

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """As before an evaluation: averages may take the weights' place at the end of training."""
        self._look_at_zeros()

    def on_validation_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Averaged weights that take the trained ones' place for an evaluation get their zeros too."""
        if batch_idx == 0 and not trainer.sanity_checking:
            self._hold_zeros()

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Averages that were put in place of the weights get their zeros too."""
        self._hold_zeros()
        if self.active and self._start is not None:
            self._tell_dead()

    def on_fit_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """As at the end of training, for averages that arrive later than this callback's turn."""
        self._hold_zeros()

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """Averaged weights in the file get the trained ones' zeros too."""
        saved = checkpoint.get("state_dict", {})
        now = {name: weight == 0 for name, weight in self._data().items()} if self._start is not None else {}
        for name, zeros in (now | self._zeros).items():
            if name in saved and saved[name].shape == zeros.shape and type(saved[name]) is type(zeros):
                saved[name] = saved[name].masked_fill(zeros.to(saved[name].device), 0.0)

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers = [], []
        self._weights, self._cuts, self._zeros, self._latest = {}, {}, {}, {}

    def _after_step(self, index: str) -> Callable[..., None]:
        names = {id(weight): name for name, weight in self._weights.items()}

        def step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with self._timed(), torch.no_grad():
                done = self._done.get(index, 0)
                ours = [p for group in optimizer.param_groups for p in group["params"] if id(p) in names]
                moved = with_gradient(ours, self._cuts)
                stepped = []
                for number, group in enumerate(optimizer.param_groups):
                    pace = self._pace(f"{index}.{number}", float(group["lr"]))
                    for parameter in group["params"]:
                        if id(parameter) in moved:
                            stepped.append(Stepped(names[id(parameter)], parameter, self._seen(parameter), pace))
                if self.heal > 0 and done >= self._penalised:
                    for name, _, weight, _ in stepped:
                        weight.masked_fill_(self._zeros[name], 0.0)
                else:
                    rare = [s for s in stepped if id(s.parameter) in self._embeddings]
                    before = [rows_without_gradient(s.parameter, self._cuts.get(id(s.parameter))) for s in rare]
                    self._move(stepped, optimizer, min(done, self._penalised - 1))
                    for one, (rows, kept) in zip(rare, before, strict=True):
                        local(one.weight)[rows] = kept
                self._done[index], self._latest = done + 1, {}
                if self.heal > 0 and done + 1 == self._penalised:
                    self._freeze(optimizer)

        return step

    def _pace(self, group: str, rate: float) -> float:
        self._peak[group] = max(self._peak.get(group, 0.0), rate)
        return rate / self._peak[group] if self._peak[group] > 0 else 0.0

    def _freeze(self, optimizer: Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._zeros |= {name: self._seen(w) == 0 for name, w in self._weights.items() if id(w) in held}

    def _look_at_zeros(self) -> None:
        if self.active and self._start is not None and not self._latest:
            self._latest = {name: weight == 0 for name, weight in self._data().items()}

    def _hold_zeros(self) -> None:
        with torch.no_grad():
            for name, zeros in (self._latest | self._zeros).items():
                self._seen(self._weights[name]).masked_fill_(zeros, 0.0)


def whole_model(trainer: "Trainer", pl_module: "LightningModule") -> nn.Module:
    """The module or, under FSDP1, its wrapper, which alone knows the shapes."""
    return trainer.model if trainer.model is not None and wraps_flat(trainer.model) else pl_module
