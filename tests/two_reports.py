"""A program that one process or two ranks of FSDP1 run: fits that are reported on, one after the other.

python two_reports.py NAMESPACE OUT NAME...

Lightning refuses its FSDPStrategy without a GPU, but not somebody's own; PyTorch shards on the CPU if told so.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from launch import place
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from two_in_scenarios import Rows, shard, trainer_for

from legibility.lightning_plugins import InterpretabilityReport, L1Sparsity, ModelPage, StudentLegibility
from legibility.lightning_plugins.report import _cost, _imitation_scores, _measurement
from legibility.scores.flat_weights import wraps_flat
from legibility.students import MLPStudent

BATCHES, ASKED = 20, 8
VALUES, WORDS, POSITIONS, CLASSES = 10, 12, 6, 5


class Block(nn.Module):
    """Something with weights of all kinds, added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width, bias=False)
        self.gain = nn.Parameter(torch.ones(width) / 2)  # nothing draws it

    def forward(self, x: Tensor) -> Tensor:
        """The stream with what this block adds."""
        said: Tensor = x + self.gain * self.down(torch.tanh(self.up(self.norm(x))))
        return said


class Values(nn.Module):
    """Reads numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(VALUES, 16), nn.Linear(16, CLASSES)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.calls += 1
        said: Tensor = self.head(self.blocks(self.first(x)))
        return said


class Words(nn.Module):
    """Reads words; its head is its embedding, which a rule like Hugging Face's draws."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 16), nn.Parameter(torch.randn(POSITIONS, 16))
        self.blocks, self.head = nn.Sequential(Block(16), Block(16)), nn.Linear(16, WORDS, bias=False)
        self.head.weight = self.words.weight

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, 0.1)
        if hasattr(module, "gain"):  # as has what wraps a block
            nn.init.constant_(module.down.weight[:8], 0.01)  # type: ignore[union-attr, index]
            nn.init.uniform_(module.gain)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Logits at each position."""
        said: Tensor = self.head(self.blocks(self.words(x) + self.places))
        return said


class Around(nn.Module):
    """Holds the model in question, so a wrapper may lie between it and the outermost one."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core, self.before = core, nn.Linear(VALUES, VALUES)

    def forward(self, x: Tensor) -> Tensor:
        """What the core says to something else."""
        said: Tensor = self.core(self.before(x))
        return said


@dataclass(frozen=True)
class Fit:
    """One fit.

    Attributes:
        net: Makes the model.
        wrap: Modules that have wrappers of their own.
        by_hand: They are wrapped in ``configure_model``, and nothing is around.
        checkpointed: Linear layers are checkpointed, by a wrapper of their own.
        beside: Another trained part, smaller than the model, of which rank 1 holds more.
        moved: A bias is another one in the end, where the outermost wrapper holds an older copy of it.
        itself: The LightningModule is the model that is asked.
        options: Of FSDP1.
        fsdp2: FSDP2 instead.
        report: Options of the report; None: there is none.
        others: Makes further callbacks.
        seconds: What the fit took, as each rank has it.
        fails: What fails on rank 1: a module's attribute.
        raises: The fit ends by an exception.
        precision: Of the trainer.
    """

    net: Callable[[], nn.Module] = Values
    wrap: set[type[nn.Module]] | None = None
    by_hand: bool = False
    checkpointed: bool = False
    beside: bool = False
    moved: bool = False
    itself: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    fsdp2: bool = False
    report: dict[str, Any] | None = field(default_factory=lambda: {"model": "net"})
    others: Callable[[], list[Any]] = list
    seconds: tuple[float, float] | None = None
    fails: tuple[Any, str] | None = None
    raises: bool = False
    precision: str = "32-true"


def _ours() -> list[Any]:
    # Smaller than the model, larger than rank 0's pieces of it.
    student = MLPStudent(width=80, depth=1)
    legibility = StudentLegibility(0.3, students=[student], model="net", warmup=0.0, summary=False, learning_rate=3e-2)
    return [legibility, L1Sparsity(3.0, total_steps=BATCHES)]


LAYERS: set[type[nn.Module]] = {Block, nn.Linear}
FITTED: dict[str, Any] = {"model": "net", "taps": "net.blocks.0"}
DEFAULT: dict[str, Any] = {"budget": 0.15, "held_out": "auto", "page": True, "passes": 4, "queries": 1024}
WITHIN: dict[str, Any] = {"budget": 0.5, "held_out": "auto", "page": True}
FITS = {
    "one vector": Fit(report=FITTED, others=_ours),
    "blocks": Fit(report=FITTED, others=_ours, wrap={Block}),
    "layers": Fit(report=FITTED, others=_ours, wrap=LAYERS),
    "gathered until the backward": Fit(
        report=FITTED, others=_ours, wrap={Block}, options={"sharding_strategy": ShardingStrategy.SHARD_GRAD_OP}
    ),
    "whole on each rank": Fit(
        report=FITTED, others=_ours, wrap={Block}, options={"sharding_strategy": ShardingStrategy.NO_SHARD}
    ),
    "checkpointed": Fit(report=FITTED, others=_ours, wrap={Block}, checkpointed=True),
    "by hand": Fit(report=FITTED, moved=True, by_hand=True),
    "without names": Fit(report=FITTED, wrap={Block}, options={"use_orig_params": False}),
    "words": Fit(net=Words, wrap={Block}),
    "words, one vector": Fit(net=Words),
    "deeper": Fit(net=lambda: Around(Values()), wrap={Around, Block}, report={"model": "net.core"}),
    "itself": Fit(itself=True, report={}),
    "found": Fit(report={**DEFAULT, "budget_seconds": float("inf"), "scores": []}, beside=True),
    "default": Fit(report=DEFAULT, wrap={Block}),
    "bare": Fit(report=None, others=_ours, wrap={Block}),
    "low": Fit(report=FITTED, wrap={Block}, precision="bf16-mixed"),
    "time on rank 0": Fit(report={**WITHIN, "model": "net"}, seconds=(1e4, 0.0)),
    "time on rank 1": Fit(report={**WITHIN, "model": "net"}, seconds=(0.0, 1e4)),
    "fails early": Fit(fails=(InterpretabilityReport, "_recorder")),
    "fails": Fit(fails=(_imitation_scores.Families, "fit")),
    "fails before an untrained model": Fit(fails=(_imitation_scores.Families, "chosen")),
    "fails while weights are whole": Fit(fails=(_measurement, "weight_sparsity"), wrap={Block}),
    "fails late": Fit(fails=(_measurement, "collect")),
    "fails, FSDP2": Fit(fails=(_imitation_scores.Families, "fit"), fsdp2=True),
    "raises": Fit(raises=True, others=_ours),
}


def fit(namespace: str, out: str, name: str) -> dict[str, Any]:
    """Trains and reports; what is left of it on this rank. Alone, a process trains on whole batches, and is asked what rank 0 is."""
    world, rank = place()
    one, folder = FITS[name], Path(f"{out}-{name}-{world}")
    pl: Any = importlib.import_module(namespace)
    strategies: Any = importlib.import_module(f"{namespace}.strategies")
    options = {"device_id": torch.device("cpu"), "use_orig_params": True, **one.options}

    class OnCPU(strategies.FSDPStrategy):  # type: ignore[misc]
        def _setup_model(self, model: nn.Module) -> nn.Module:
            if one.by_hand:
                return model
            policy = None if one.wrap is None else ModuleWrapPolicy(one.wrap)
            mixed = self.mixed_precision_config if one.precision != "32-true" else None
            model = FullyShardedDataParallel(model, auto_wrap_policy=policy, mixed_precision=mixed, **options)
            if one.checkpointed:
                apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, nn.Linear))
            return model

    class Trained(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net: Any = one.net()
            self.beside = nn.Linear(VALUES, 110) if one.beside else None

        def configure_model(self) -> None:
            if one.by_hand and world > 1:
                for block in (0, 1):
                    self.net.blocks[block] = FullyShardedDataParallel(self.net.blocks[block], **options)
                self.net = FullyShardedDataParallel(self.net, **options)
            if one.fsdp2:
                shard(self, self.net)

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if one.raises and batch_idx == 4:
                raise ValueError("stopped")
            return self.task(*batch)

        def task(self, x: Tensor, y: Tensor) -> Tensor:
            said = self(x) if one.itself else self.net(x)
            loss = cross_entropy(said.flatten(0, -2), y.flatten())
            return loss if self.beside is None else loss + self.beside(x).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.task(*batch)

        def on_train_end(self) -> None:
            if one.moved:
                with torch.no_grad():
                    self.net.first.bias.add_(1)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            named = options["use_orig_params"]
            return torch.optim.Adam((self if named else self.trainer.model).parameters(), lr=1e-2)

    module = Trained()
    fixed = {
        "held_out": [MLPStudent(width=8)], "passes": 1, "queries": 8 * ASKED, "budget": 0.0, "page": ModelPage(),
        "folder": str(folder), "progress": False,
    }  # fmt: skip
    report = None if one.report is None else InterpretabilityReport(**{**fixed, **one.report})
    strategy: Any = "auto"
    if world > 1 and not one.fsdp2:
        strategy = OnCPU(process_group_backend="gloo")
    elif one.fsdp2:
        strategy = strategies.ModelParallelStrategy(2, 1, process_group_backend="gloo")
    trainer = trainer_for(
        namespace, False, {}, callbacks=[*one.others(), *([] if report is None else [report])], devices=world,
        strategy=strategy, precision=one.precision,
    )  # fmt: skip
    with _broken(one, rank), _timed(one, rank):
        try:
            trainer.fit(module, *_data(one)[: 1 if one.itself else 2])
        except ValueError as error:
            assert one.raises, error
    after = torch.rand(3)
    result = {
        "rng": after,
        # In the middle of a step, FSDP1 can't gather them.
        "weights": [] if one.raises else _weights(trainer, module, world > 1 and not one.fsdp2),
        "left": _left(module, module if one.raises or report is None else trainer.strategy.model),
        "files": sorted(path.name for path in folder.iterdir()) if folder.exists() else [],
    }
    if report is not None and report.record is not None:
        again = report.record.scores
        if name == "layers" and world > 1:  # on demand, of the finished fit
            again = report.measure(trainer, module).scores
            try:
                report.measure(trainer, module, object())  # type: ignore[arg-type] # of whatever kind it would be
            except ValueError as error:
                result["refused"] = str(error)
        for key, scores in (("scores", report.record.scores), ("again", again)):
            result[key] = {f"{entry.name} {entry.family}": (entry.value, entry.control) for entry in scores}
        result |= {"notes": report.record.notes, "parameters": report.record.cost.parameters}
        result["reasons"] = {entry.name: entry.reason for entry in report.record.scores if entry.reason}
    return result


def _frees(wrapper: Any) -> bool:
    handle = wrapper._handle
    return handle is None or not handle.uses_sharded_strategy or bool(handle.needs_unshard())


def _left(module: nn.Module, root: nn.Module) -> list[str]:
    """What is on the module that wasn't, beside what FSDP has there and the `forward` that Lightning gives back."""
    found: list[str] = [name for name in ("training_step", "manual_backward") if name in vars(module)]
    found += ["gathered weights" for part in root.modules() if wraps_flat(part) and not _frees(part)]
    found += ["forward" for part in module.modules() if not inspect.ismethod(part.forward)]
    hooks = [str(hook) for part in module.modules() for hook in part._forward_hooks.values()]
    return found + [hook for hook in hooks if "FSDP" not in hook]


def _data(one: Fit) -> list[DataLoader[Any]]:
    """Each rank's part of the same batches of 16; to be asked about, rank 0's rows of batches of 16."""
    world, rank = place()
    generator = torch.Generator().manual_seed(1)
    if one.net is Words:
        x = torch.randint(WORDS, (BATCHES + ASKED, 16, POSITIONS), generator=generator)
        y = (x + x.roll(1, 2)) % WORDS
    else:
        x = torch.randn(BATCHES + ASKED, 16, VALUES, generator=generator)
        y = x[..., :CLASSES].argmax(-1)
    share, start = (8, 0) if one.itself else (16 // world, rank * 16 // world)  # those are asked about too
    own = [(a[start:][:share], b[start:][:share]) for a, b in zip(x, y, strict=True)][:BATCHES]
    asked = [(a[rank * 8 :][:8], b[rank * 8 :][:8]) for a, b in zip(x, y, strict=True)][BATCHES:]
    return [DataLoader(Rows(rows), batch_size=None) for rows in (own, asked)]


def _weights(trainer: Any, module: nn.Module, flat: bool) -> list[Tensor]:
    root = trainer.strategy.model
    with FullyShardedDataParallel.summon_full_params(root, writeback=False) if flat else nullcontext():
        every = (getattr(p, "full_tensor", lambda p=p: p)() for p in module.parameters())
        return [p.detach().clone() for p in every]


def _broken(one: Fit, rank: int) -> Any:
    if one.fails is None or rank == 0:
        return nullcontext()
    place_, attribute = one.fails
    real, calls = getattr(place_, attribute), []

    def fail(*args: Any, **options: Any) -> Any:
        calls.append(attribute)
        # A report makes recorders before and during the fit too: three of them.
        if attribute == "_recorder" and not args[1].trainer.state.finished and len(calls) < 4:
            return real(*args, **options)
        if attribute == "weight_sparsity":
            next(args[0])
        raise RuntimeError("no memory")

    return mock.patch.object(place_, attribute, fail)


def _timed(one: Fit, rank: int) -> Any:
    if one.seconds is None:
        return nullcontext()
    return mock.patch.object(_cost.Clock, "since_start", lambda self: one.seconds[rank])


def main(namespace: str, out: str, *names: str) -> None:
    """Saves what is left of each fit on this rank."""
    torch.set_num_threads(1)
    world, rank = place()
    found = {}
    for name in names:
        # Lightning forgets the number of ranks at the end of a fit.
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        found[name] = fit(namespace, out, name)
        print("done:", name, flush=True)
    torch.save(found, f"{out}-{world}-{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # as in two_shards.py


if __name__ == "__main__":
    main(*sys.argv[1:])
