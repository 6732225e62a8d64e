"""One run: the merged configuration through LightningCLI, fit, checkpoint, record."""

import contextlib
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI

from legibility.recipes._code import code_of_library
from legibility.recipes._find import load
from legibility.recipes._folder import (
    BY_ANOTHER,
    CHECKPOINT,
    CONFIG,
    DIGEST,
    LOG,
    RECORD,
    claimed,
    clean,
    read_failure,
    write,
    write_failure,
    write_origin,
)
from legibility.recipes._plan import Job, is_report, merge
from legibility.recipes._recipe import RESERVED
from legibility.recipes._wandb_run import WandbRun, logger_entry
from legibility.tradeoff import load_record

Tell = Callable[[str, float], None]
"""Hears what a run is doing (``"training"``, ``"measuring"``) and which share of it is done."""

Written = Callable[[Path], contextlib.AbstractContextManager[object]]


def run(
    job: Job,
    *,
    written: Written = contextlib.nullcontext,
    tell: Tell | None = None,
    bar: bool = False,
    again: bool = False,
) -> str:
    """Runs one job and leaves its folder finished.

    What was in the folder of an earlier run goes first, the digest comes last: a run that was killed is not finished.
    If another process is at this very run, it is waited for, and what it leaves is taken; so is what another process
    finished, or failed at, between the look at what is to be done and this call.

    Args:
        job: The run.
        written: While inside ``written(path)``, what is printed goes into that file; default: where it always goes.
        tell: Called a few times each second.
        bar: Whether Lightning shows its progress bar.
        again: Run it though it is finished or has failed, unless another process did that while this one waited for it.

    Returns:
        What the user should know although the run is finished; mostly nothing.

    Raises:
        RuntimeError: It has failed in another process.
        Exception: Whatever the run raised; its text is in the folder's ``error.txt``.
    """
    tell = tell or (lambda stage, share: None)
    with claimed(job.folder, lambda holder: tell(f"waiting for {holder}", 0.0)) as waited:
        state = job.state()
        if state in ("finished", "failed") and (waited or not again):
            if state == "finished":
                return BY_ANOTHER
            raise RuntimeError(f"it failed in another process: {read_failure(job.folder, job.digest)}")
        clean(job.folder)
        write_origin(job.folder, job.named, code_of_library())
        with written(job.folder / LOG):
            try:
                with _one_thread():
                    notes = _run(job, tell, bar)
            except (Exception, SystemExit) as error:
                # Lightning turns Ctrl-C into an exit; what follows from it is no failure of the run.
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                write_failure(job.folder, job.digest, traceback.format_exc())
                raise
        write(job.folder / DIGEST, job.digest + "\n")
    return "; ".join(notes)


def check(job: Job) -> None:
    """Parses a run's configuration against the classes that it names, without building or training anything.

    Raises:
        Exception: From LightningCLI, if something does not fit; ImportError if the module cannot be imported.
    """
    load(job.module, job.path)
    parsed_cli(_ParsedOnly, ["--config", yaml.safe_dump(_settled(job, bar=False)), *job.overrides])


class _ParsedOnly(LightningCLI):
    def instantiate_classes(self) -> None:
        """Nothing: parsing was all that was asked for."""

    def _set_seed(self) -> None:
        """Nothing either: nothing random follows."""


def _run(job: Job, tell: Tell, bar: bool) -> list[str]:
    load(job.module, job.path)
    config = job.folder / CONFIG
    write(config, yaml.safe_dump(_settled(job, bar), sort_keys=False))
    cli = parsed_cli(LightningCLI, ["--config", str(config), *job.overrides])
    with warnings.catch_warnings():
        # Without the Nones of the command line, the written file would not say what was run.
        warnings.simplefilter("ignore")
        resolved = cli.parser.dump(cli.config, skip_none=False)
    write(config, f"# {job.label}\n" + resolved)

    wandb = WandbRun(cli.trainer)
    with wandb.open():
        if job.start is not None:
            wandb.use_model(job.start)
        if job.control is not None:
            _measure_control(job, cli)
        else:
            _fit(job, cli, tell)
            wandb.keep_model(job.folder / CHECKPOINT)
    if job.arm != RESERVED:
        _check_record(job)
    return wandb.notes


def _fit(job: Job, cli: LightningCLI, tell: Tell) -> None:
    callbacks = _callbacks(cli)
    callbacks.insert(0, _Watch(tell))
    start = None
    if job.start is not None:
        start = job.start / CHECKPOINT
        # Before the arm's own callbacks, which may change optimizer settings and remember what they found.
        callbacks.insert(0, _OwnSettings())
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=start)
    temporary = job.folder / f"{CHECKPOINT}.part"
    cli.trainer.save_checkpoint(temporary)
    temporary.replace(job.folder / CHECKPOINT)


def _measure_control(job: Job, cli: LightningCLI) -> None:
    """Measures a finished model as a control. The only place that calls the report by hand."""
    from legibility.lightning_plugins import RandomInitControl, TemperatureControl

    assert job.control is not None and job.start is not None
    path = job.start / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; delete {job.start / DIGEST} so that it is trained again")
    cli.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    control: TemperatureControl | RandomInitControl = RandomInitControl(job.control.of, job.seed)
    if job.control.matches is not None:
        matched = next(folder for folder in job.needs if folder.parent.name == job.control.matches)
        loss = load_record(matched / RECORD).task.loss
        if loss is None:
            raise ValueError(f"{matched / RECORD} holds no task loss that a temperature could be fitted to")
        control = TemperatureControl(job.control.of, job.control.matches, loss)
    report: Any = next(c for c in _callbacks(cli) if type(c).__name__ == "InterpretabilityReport")
    report.measure(cli.trainer, cli.model, cli.datamodule, control=control)


def _check_record(job: Job) -> None:
    """The report notes that measuring failed, or a loss was missing, to save the run. In a comparison it is a failed one."""
    if not (job.folder / RECORD).is_file():
        raise RuntimeError(f"InterpretabilityReport wrote no {RECORD} into {job.folder}")
    for note in load_record(job.folder / RECORD).notes:
        if note.startswith(("measuring failed", "`task_loss`")):
            raise RuntimeError(note)


def _callbacks(cli: LightningCLI) -> list[Callback]:
    callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def _settled(job: Job, bar: bool) -> dict[str, Any]:
    """The configuration with what only the engine knows: seed, folder, and nothing beside the folder."""
    quiet = {
        "logger": False if job.project is None else logger_entry(job),
        "enable_checkpointing": False,
        "enable_model_summary": bar,
        "enable_progress_bar": bar,
        "default_root_dir": str(job.folder),
    }
    told = {"arm": job.arm, "seed": job.seed, "recipe": job.recipe, "folder": str(job.folder)}
    config = merge({"trainer": quiet}, job.config)
    config["seed_everything"] = job.seed
    config["trainer"]["callbacks"] = [
        merge(entry, {"init_args": told}) if is_report(entry) else entry for entry in config["trainer"]["callbacks"]
    ]
    plain: dict[str, Any] = _plain(config)
    return plain


def _plain(value: Any) -> Any:
    """Mappings and sequences as YAML knows them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def parsed_cli(kind: type[LightningCLI], arguments: list[str]) -> LightningCLI:
    """A LightningCLI as recipes use it, built from these arguments."""
    with warnings.catch_warnings():
        # It sees the arguments of `legibility` behind its own and takes that for a mistake.
        warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
        return kind(
            args=arguments,
            run=False,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False},
        )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Models of recipes are tiny: two threads on one of them are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Watch(Callback):
    """Tells how far a fit is."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._start = 0
        self._told = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._told > 0.25:
            self._told = time.monotonic()
            steps = trainer.estimated_stepping_batches - self._start
            self._tell("training", min(1.0, (trainer.global_step - self._start) / max(1, steps)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell("measuring", 1.0)


class _OwnSettings(Callback):
    """Gives an arm its own optimizer settings back after the base's checkpoint was loaded over them.

    The learning rate is left as restored: it belongs to the schedule, which goes on.
    """

    _RESTORED = ("params", "lr", "initial_lr")

    def __init__(self) -> None:
        self._settings: list[list[dict[str, Any]]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settings = [
            [{key: value for key, value in group.items() if key not in self._RESTORED} for group in o.param_groups]
            for o in trainer.optimizers
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, groups in zip(trainer.optimizers, self._settings, strict=True):
            for group, own in zip(optimizer.param_groups, groups, strict=True):
                group.update(own)
