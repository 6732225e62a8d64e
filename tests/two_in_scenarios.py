"""A program that two ranks run: the scenarios named on the command line, one after the other, in one process group.

python two_in_scenarios.py NAMESPACE OUT SCENARIO...
"""

import contextlib
import importlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from by_hand import RATE as SLOW
from by_hand import STUDENTS, make_manual
from launch import place
from manual_programs import GANS, ONE_MODEL
from scenarios import BATCHES, DDP, FSDP2, RATE, STRENGTH, Scenario, batches, idle, model, task
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from legibility.lightning_plugins import InterpretabilityReport, ModelPage, StudentLegibility
from legibility.students import MLPStudent

try:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
except ImportError:  # before torch 2.6
    from torch.distributed._composable.fsdp import MixedPrecisionPolicy, fully_shard  # type: ignore[attr-defined]

PROGRAMS = {name: (program, optimizers, "net") for name, (program, optimizers) in ONE_MODEL.items()}
PROGRAMS |= {f"GAN {name}, {one}": (program, ["g", "d"], one) for name, program in GANS.items() for one in ("g", "d")}


class Rows(Dataset[Any]):
    """Batches as they are."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]


def whole(tensors: Any) -> list[Tensor]:
    """Sharded tensors as whole ones."""
    return [getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)().detach().clone() for tensor in tensors]


def shard(module: Any, *parts: nn.Module, low: bool = False) -> None:
    """Shards modules over the ranks, innermost first."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if low else None)
    for part in parts:
        fully_shard(part, mesh=module.device_mesh["data_parallel"], mp_policy=policy)


def make(pl: Any, scenario: Scenario) -> Any:
    """The LightningModule of a scenario; keeps the gradients that the optimizer sees."""
    rank = place()[1]

    class Trained(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model()
            self.seen: list[list[Tensor]] = []
            if scenario.sharded is None and scenario.compiled:
                self.net.trunk.compile(backend="eager")

        def configure_model(self) -> None:
            if scenario.sharded is not None and not self.seen:
                shard(self, self.net.trunk, self.net, **scenario.sharded)
                if scenario.compiled:
                    self.net.trunk.compile(backend="eager")

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if scenario.slices(batch_idx, rank) is None:
                return idle(self.net)
            x, y = batch
            return task(scenario, self.net, x, y)[0]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen.append(whole(p.grad for p in self.net.parameters() if p.grad is not None))

    return Trained()


def trainer_for(namespace: str, sharded: bool, options: dict[str, Any], **others: Any) -> Any:
    """Of two CPU ranks."""
    pl = importlib.import_module(namespace)
    strategies = importlib.import_module(f"{namespace}.strategies")
    if sharded:
        options = {"data_parallel_size": 2, "tensor_parallel_size": 1, **options}
        strategy = strategies.ModelParallelStrategy(process_group_backend="gloo", **options)
    else:
        strategy = strategies.DDPStrategy(process_group_backend="gloo", **options)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    fixed = {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": strategy,
        "max_epochs": 1,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(**{**fixed, **quiet, **others})


def automatic(namespace: str, scenario: Scenario) -> dict[str, Any]:
    """Trains a scenario; what happened on this rank."""
    rank = place()[1]
    module = make(importlib.import_module(namespace), scenario)
    plugin = StudentLegibility(
        STRENGTH, students=scenario.students, model="net", output="1" if scenario.second else "0", warmup=0.0,
        imitate="distribution", learning_rate=RATE, summary=False, sync="split" if scenario.split else "all",
    )  # fmt: skip
    trainer = trainer_for(
        namespace, scenario.sharded is not None, scenario.strategy, callbacks=[plugin],
        accumulate_grad_batches=scenario.accumulate, precision=scenario.precision,
    )  # fmt: skip
    parts = [scenario.slices(index, rank) for index in range(BATCHES)]
    rows = [(x[part], y[part]) for (x, y), part in zip(batches(), [p or slice(0, 0) for p in parts], strict=True)]
    trainer.fit(module, DataLoader(Rows(rows), batch_size=None))
    return result(plugin, module, module.net)


def by_hand(namespace: str, name: str, sharded: bool) -> dict[str, Any]:
    """Trains a program that optimizes by hand."""
    program, optimizers, primary = PROGRAMS[name]
    module = make_manual(importlib.import_module(namespace), program, optimizers)
    plugin = StudentLegibility(
        STRENGTH, students=STUDENTS, model=f"nets.{primary}", warmup=0.0, imitate="distribution", learning_rate=SLOW,
        summary=False,
    )  # fmt: skip

    class Sharded(type(module)):  # type: ignore[misc]
        def configure_model(self) -> None:
            if sharded:
                shard(self, *self.nets["net"][::2], *self.nets.values())

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            held = [p.grad for group in optimizer.param_groups for p in group["params"]]
            self.seen.append(whole(grad for grad in held if grad is not None))

    module.__class__ = Sharded
    options = {} if sharded else {"find_unused_parameters": True}
    trainer = trainer_for(namespace, sharded, options, callbacks=[plugin])
    half = slice(8 * place()[1], 8 * place()[1] + 8)
    trainer.fit(module, DataLoader(Rows([(x[half], y[half]) for x, y in batches()]), batch_size=None))
    return result(plugin, module, module.nets)


def reported(namespace: str, out: str, name: str) -> dict[str, Any]:
    """Trains a little and reports; the record as this rank has it, and the files that it finds afterwards.

    Alone, a process trains on the whole batches, and is asked what rank 0
    is asked.
    """
    world, rank = place()
    module = make(importlib.import_module(namespace), Scenario(sharded={} if name == "FSDP2" else None))

    class Validated(type(module)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            task(Scenario(), self.net, *batch)

        def on_train_end(self) -> None:
            if name == "FSDP2":
                self.net.reshard()  # after a forward call, what the root has is a copy
            with torch.no_grad():
                self.net.side.weight.zero_()

    module.__class__ = Validated
    folder = Path(f"{out}-{name}")
    report = InterpretabilityReport(
        folder=str(folder), model="net", output="0", taps="net.trunk", queries=64, held_out=[MLPStudent(width=8)],
        passes=1, progress=False, budget=0.0, page=ModelPage(),
    )  # fmt: skip
    share = 16 // world
    own = [(x[rank * share :][:share], y[rank * share :][:share]) for x, y in batches()[:6]]
    asked = [(x[rank * 8 :][:8], y[rank * 8 :][:8]) for x, y in batches()[6:16]]
    trainer = trainer_for(
        namespace, name == "FSDP2", {}, callbacks=[report], logger=False, devices=world,
        **({"strategy": "auto"} if world == 1 else {}),
    )  # fmt: skip
    trainer.fit(module, *(DataLoader(Rows(rows), batch_size=None) for rows in (own, asked)))
    found = [] if report.record is None else report.record.scores
    scores = {f"{entry.name} {entry.family}": (entry.value, entry.control) for entry in found}
    guards = {} if report.record is None else report.record.guards
    notes = [] if report.record is None else report.record.notes
    files = sorted(path.name for path in folder.iterdir())
    weights = whole(module.net.parameters())
    return {"scores": scores, "guards": guards, "notes": notes, "files": files, "weights": weights}


def split_life(namespace: str, out: str) -> dict[str, Any]:
    """Students split by rank: interrupted and resumed, resumed wrongly, too few, one dropped; what each rank saw."""
    pl: Any = importlib.import_module(namespace)
    callbacks: Any = importlib.import_module(f"{namespace}.callbacks")
    rank, folder = place()[1], Path(f"{out}-checkpoints")
    own = DataLoader(Rows([(x[8 * rank :][:8], y[8 * rank :][:8]) for x, y in batches()[:12]]), batch_size=None)

    class Poison(pl.Callback):  # type: ignore[misc]
        """Breaks rank 1's student."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            (plugin,) = (callback for callback in trainer.callbacks if isinstance(callback, StudentLegibility))
            if rank == 1 and batch_idx == 5 and plugin.built is not None:
                with torch.no_grad():
                    next(plugin.built.cohort.networks["mlp_2"].parameters()).fill_(torch.nan)

    class Stop(pl.Callback):  # type: ignore[misc]
        """Ends the fit by an exception, on both ranks."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                raise ValueError("stopped")

    def fit(*others: Any, start: str | None = None, epochs: int = 2, **options: Any) -> Any:
        os.environ |= {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        fixed: dict[str, Any] = {
            "students": Scenario.students, "model": "net", "output": "0", "warmup": 0.0, "imitate": "distribution",
            "learning_rate": RATE, "sync": "split", "summary": False,
        }  # fmt: skip
        plugin = StudentLegibility(STRENGTH, **{**fixed, **options})
        module = make(pl, Scenario())
        trainer = trainer_for(
            namespace, False, {}, callbacks=[plugin, *others], max_epochs=epochs, log_every_n_steps=1,
            enable_checkpointing=any(isinstance(other, callbacks.Checkpoint) for other in others),
        )  # fmt: skip
        try:
            trainer.fit(module, own, ckpt_path=start)
        except ValueError as error:
            return str(error)
        return trainer, plugin, result(plugin, module, module.net)

    found: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        every = callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        trainer, plugin, found["whole"] = fit(every, summary=True)
    found["printed"] = printed.getvalue()
    found["logged"] = {name: float(value) for name, value in trainer.logged_metrics.items()}
    plugin.save_students(f"{out}-students")
    start = str(folder / "epoch=0.ckpt")
    resumed = fit(start=start)
    assert not isinstance(resumed, str), resumed
    found["resumed"] = resumed[2]
    found["resumed as all"] = fit(start=start, sync="all")
    found["too few"] = fit(students=Scenario.students[:1])
    found["stopped"] = fit(callbacks.OnExceptionCheckpoint(folder, "stopped"), Stop())
    found["resumed from an exception"] = fit(start=str(folder / "stopped.ckpt"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, plugin, _ = fit(Poison(), epochs=1)
    found["failed"] = dict(plugin.built.cohort.failed)
    found["warned"] = [str(entry.message) for entry in said if "is dropped" in str(entry.message)]
    return found


def static_accumulated(namespace: str) -> dict[str, Any]:
    """What DDP says of a static graph in accumulated batches, without and with students."""
    pl: Any = importlib.import_module(namespace)
    world, rank = place()
    found: dict[str, Any] = {}
    own = DataLoader(Rows([(x[8 * rank :][:8], y[8 * rank :][:8]) for x, y in batches()[:8]]), batch_size=None)
    students = StudentLegibility(STRENGTH, students=STUDENTS, model="net", output="0", warmup=0.0, summary=False)
    for name, callbacks in (("bare", []), ("ours", [students])):
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        module = make(pl, Scenario())
        try:
            trainer_for(namespace, False, {"static_graph": True}, callbacks=callbacks, accumulate_grad_batches=2).fit(
                module, own
            )
        except RuntimeError as error:
            found[name] = str(error)
        found[f"{name}, steps"] = len(module.seen)
    return found


def tensor_parallel(namespace: str, returned: str) -> dict[str, Any]:
    """Layers spread over the ranks, which compute each batch together; the model may return a tensor or a DTensor.

    With "parts", students are asked to learn what each rank has half of.
    """
    pl: Any = importlib.import_module(namespace)
    everybody = Scenario(slices=lambda index, rank: slice(0, 16))
    module = make(pl, everybody)
    last = (
        ColwiseParallel(use_local_output=False)
        if returned == "DTensor"
        else ColwiseParallel(output_layouts=Replicate())
    )

    class Spread(type(module)):  # type: ignore[misc]
        def configure_model(self) -> None:
            plan = {"trunk.0": ColwiseParallel(), "trunk.2": RowwiseParallel(), "head": last}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            first, second = self.net(batch[0])
            first = getattr(first, "full_tensor", lambda: first)()
            loss: Tensor = cross_entropy(first, batch[1]) + 0.1 * second.square().mean()
            return loss

    module.__class__ = Spread
    plugin = StudentLegibility(
        STRENGTH, students=Scenario.students, model="net", output="0", warmup=0.0, imitate="distribution",
        learning_rate=RATE, summary=False, taps="net.trunk.0" if returned == "parts" else (),
    )  # fmt: skip
    options = {"data_parallel_size": 1, "tensor_parallel_size": 2}
    trainer = trainer_for(namespace, True, options, callbacks=[plugin])
    try:
        trainer.fit(module, DataLoader(Rows(batches()), batch_size=None))
    except ValueError as error:
        return {"said": str(error)}
    return result(plugin, module, module.net)


def flat(namespace: str) -> dict[str, Any]:
    """FSDP1: the whole weights, the students of this rank.

    Lightning refuses its FSDPStrategy without a GPU, but not somebody's own; PyTorch shards on the CPU if told so, but
    its full state dict crashes there (torch 2.13).
    """
    pl: Any = importlib.import_module(namespace)
    strategies: Any = importlib.import_module(f"{namespace}.strategies")
    gpus = torch.cuda.device_count() > 1

    class OnCPU(strategies.FSDPStrategy):  # type: ignore[misc]
        def _setup_model(self, model: nn.Module) -> nn.Module:
            return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)

    strategy = strategies.FSDPStrategy if gpus else OnCPU
    half = slice(8 * place()[1], 8 * place()[1] + 8)
    plugin = StudentLegibility(
        STRENGTH, students=Scenario.students, model="net", output="0", warmup=0.0, imitate="distribution",
        learning_rate=RATE, summary=False,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="gpu" if gpus else "cpu", devices=2, max_epochs=1,
        strategy=strategy(use_orig_params=True, process_group_backend="nccl" if gpus else "gloo"),
        use_distributed_sampler=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[plugin],
    )  # fmt: skip
    module = make(pl, Scenario())
    module.on_before_optimizer_step = lambda optimizer: None  # gradients are flat pieces here
    trainer.fit(module, DataLoader(Rows([(x[half], y[half]) for x, y in batches()]), batch_size=None))
    with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):
        weights = [p.detach().cpu().clone() for p in module.net.parameters()]
    assert plugin.built is not None
    cohort = plugin.built.cohort
    return {
        "weights": weights,
        "students": {n: [p.detach().cpu() for p in net.parameters()] for n, net in cohort.networks.items()},
        "active": cohort.active,
        "left": [name for name in ("training_step", "manual_backward") if name in vars(module)],
    }


def result(plugin: StudentLegibility, module: Any, trained: nn.Module) -> dict[str, Any]:
    """What a rank hands back."""
    assert plugin.built is not None
    cohort = plugin.built.cohort
    return {
        "gradients": module.seen,
        "weights": whole(trained.parameters()),
        "students": {name: [p.detach() for p in network.parameters()] for name, network in cohort.networks.items()},
        "active": {name: cohort.active[name] for name in cohort.networks},
        "left": [name for name in ("training_step", "manual_backward") if name in vars(module)],
    }


def main(namespace: str, out: str, *names: str) -> None:
    """Runs the scenarios and saves what happened on this rank."""
    torch.set_num_threads(1)
    world, rank = place()
    found = {}
    for name in names:
        kind, _, program = name.partition(": ")
        # Lightning forgets the number of ranks at the end of a fit.
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        if name == "split life":
            found[name] = split_life(namespace, out)
        elif kind == "tensor parallel":
            found[name] = tensor_parallel(namespace, program)
        elif name == "static graph, accumulated":
            found[name] = static_accumulated(namespace)
        elif name == "FSDP1":
            found[name] = flat(namespace)
        elif kind == "report":
            found[name] = reported(namespace, out, program)
        elif program:
            found[name] = by_hand(namespace, program, sharded=kind == "FSDP2 by hand")
        else:
            found[name] = automatic(namespace, (DDP | FSDP2)[name])
        print("done:", name, flush=True)
    torch.save(found, f"{out}-{world}-{rank}.pt")
    torch.distributed.barrier()
    # gloo's threads abort about one exit in ten ("terminate called without an active exception"): leave at once.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
