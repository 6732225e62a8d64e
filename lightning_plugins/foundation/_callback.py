"""What our callbacks share: both Lightning namespaces, installation and clean-up, pending state, cost, logging."""

import importlib
import math
import numbers
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from legibility.lightning_plugins.foundation._strategies import check_strategy
from legibility.lightning_plugins.foundation._wandb import define_step_metric

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    # `lightning.pytorch` and `pytorch_lightning` are two copies of the same classes: a callback that derives from
    # every installed base is accepted by both Trainers, by both LightningCLIs, and its checkpoints cross over.
    _bases = []
    for _name in ("pytorch_lightning", "lightning.pytorch"):
        try:
            _bases.append(importlib.import_module(_name).Callback)
        except ModuleNotFoundError:
            continue
    Callback = type("Callback", tuple(dict.fromkeys(_bases)), {})


class LegibilityCallback(Callback):
    """Base of our callbacks: what is installed at the start of a fit is gone after it, also after an exception.

    A subclass implements ``_install`` and ``_uninstall``; the latter must be idempotent. The training loop, with the
    hooks that our callbacks use marked ``*``::

        * setup                   strategies that are not supported are refused
        configure_optimizers -> wrap (DDP)
        * on_fit_start            names resolved, hooks and wrappers installed
        * on_train_start          number of steps known
        for each batch:
            * training_step       recorded; penalties added to the returned loss, or to that of each manual_backward
              backward, clip, optimizer.step
            * step post-hook      proximal steps
            * on_train_batch_end  students step, logs
        * on_fit_end              report
        * teardown, on_exception  everything removed
    """

    def __init__(self) -> None:
        super().__init__()
        self._installed = False
        self._pending: dict[str, Any] | None = None
        self._seconds = 0.0
        self._steps = 0

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        raise NotImplementedError

    def _uninstall(self) -> None:
        raise NotImplementedError

    @property
    def strengths(self) -> dict[str, float]:
        """Coefficient of everything this callback adds to training, by name; empty for one that only watches."""
        return {}

    @property
    def seconds_per_step(self) -> float:
        """Mean time of this callback's own work per training batch, in seconds (0 before the first)."""
        return self._seconds / self._steps if self._steps else 0.0

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Refuses what can't be right, before the strategy touches the model.

        Raises:
            NotImplementedError: Under DeepSpeed, XLA, or several ranks of an unknown strategy.
        """
        if stage == "fit":
            check_strategy(trainer)

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Installs; what was left of an aborted fit goes first."""
        ours = (c for c in trainer.callbacks if isinstance(c, LegibilityCallback))  # type: ignore[attr-defined]
        if next(ours, self) is self:  # once for all of them
            define_step_metric(trainer)
        self._remove()
        self._installed = True
        self._seconds, self._steps = 0.0, 0
        try:
            self._install(trainer, pl_module)
        except BaseException:
            self._remove()
            raise

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Cleans up: Lightning does not call ``teardown`` when fit raises."""
        self._remove()

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Cleans up."""
        self._remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until what it belongs to exists: some strategies restore before, some after."""
        self._pending = state_dict

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles belong to no module: they begin anew at their next fit.

        Lightning leaves the module's own ``log`` and ``log_dict`` on every callback; it sets them again.
        """
        kept = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return {name: None if isinstance(value, weakref.ref) else value for name, value in kept.items()}

    def _remove(self) -> None:
        if self._installed:
            self._installed = False
            self._uninstall()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - start

    def _write_log(self, pl_module: "LightningModule", values: Mapping[str, Tensor | float]) -> None:
        """Logs under ``legibility/``; of several alike in one trainer, the first under ``legibility/1/``, and so on."""
        alike = [callback for callback in pl_module.trainer.callbacks if type(callback) is type(self)]  # type: ignore[attr-defined]
        place = "legibility" if len(alike) < 2 else f"legibility/{alike.index(self) + 1}"
        pl_module.log_dict({f"{place}/{key}": value for key, value in values.items()}, on_step=True, on_epoch=False)


def is_logging_step(trainer: "Trainer") -> bool:
    """Whether the trainer writes this step's logs; in between, computing what would be logged is wasted."""
    every = log_every(trainer)
    return every > 0 and step_of(trainer) % every == 0


def step_of(trainer: "Trainer") -> int:
    """The number of steps so far: of the optimizer or, in manual optimization, of batches.

    By hand, one batch may hold the steps of two optimizers or none; batches are what Lightning's loggers count then.
    """
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


def log_every(trainer: "Trainer") -> int:
    """The trainer's ``log_every_n_steps``; 0 if it never logs."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def check_strength(strength: float, argument: str = "strength") -> float:
    """A coefficient that is finite and not negative.

    Raises:
        TypeError: Not a number.
        ValueError: Negative, infinite or NaN.

    Example:
        >>> check_strength(0.2)
        0.2
    """
    _check_number(strength, f"`{argument}` must be a number >= 0")
    if not math.isfinite(strength) or strength < 0:
        raise ValueError(f"`{argument}` must be a finite number >= 0, got {strength}.")
    return float(strength)


def check_positive(value: float, argument: str) -> float:
    """A finite number above 0.

    Raises:
        TypeError: Not a number.
        ValueError: Any other.

    Example:
        >>> check_positive(0.1, "budget")
        0.1
    """
    if check_strength(value, argument) == 0:
        raise ValueError(f"`{argument}` must be above 0, got {value}.")
    return float(value)


def check_share(share: float, argument: str) -> float:
    """A share in [0, 1): of the training's steps, of the weights.

    Raises:
        TypeError: Not a number.
        ValueError: Outside of [0, 1) or NaN.

    Example:
        >>> check_share(0.35, "heal")
        0.35
    """
    _check_number(share, f"`{argument}` must be a share in [0, 1)")
    if not 0 <= share < 1:
        meant = f": for {share:g} % give {share / 100:g}" if 1 < share < 100 else ""
        raise ValueError(f"`{argument}` must be a share in [0, 1), got {share}{meant}.")
    return float(share)


def check_count(count: object, argument: str, *, least: int = 1) -> int:
    """A whole number that is not too small.

    Raises:
        TypeError: Not a whole number.
        ValueError: Below the least.

    Example:
        >>> check_count(4, "k")
        4
    """
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise TypeError(f"`{argument}` must be a whole number >= {least}, got {count!r} ({type(count).__name__}).")
    if count < least:
        raise ValueError(f"`{argument}` must be at least {least}, got {count}.")
    return int(count)


def check_seed(seed: object, argument: str = "seed") -> int:
    """A whole number.

    Raises:
        TypeError: Anything else.

    Example:
        >>> check_seed(-3)
        -3
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"`{argument}` must be a whole number, got {seed!r} ({type(seed).__name__}).")
    return int(seed)


def _check_number(value: object, expected: str) -> None:
    # numbers.Real: NumPy's numbers too.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{expected}, got {value!r} ({type(value).__name__}).")


def check_choice(value: Any, choices: Any, argument: str) -> None:
    """One of the words of a ``Literal``.

    Raises:
        ValueError: Anything else.

    Example:
        >>> from typing import Literal
        >>> check_choice("all", Literal["all", "split"], "sync")
    """
    if value not in get_args(choices):
        raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}.")


def total_steps(trainer: "Trainer") -> int | None:
    """The number of optimizer steps that this fit will have reached at its end; None if the trainer can't tell."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps > 0 else None


def no_autocast(device: torch.device) -> torch.autocast:
    """A context in which nothing is cast down: students and penalties are computed in float32."""
    return torch.autocast(device_type=device.type, enabled=False)
