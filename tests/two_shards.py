"""A program that one process or two ranks with sharded weights run: the same global batches, results to a file.

    python two_shards.py NAMESPACE OUT CALLBACK ["resumed", "flat", "flat layers", "flat resumed", ...]

With WORLD_SIZE=2 and LOCAL_RANK set, each rank takes its half of every batch of 16. Weights are sharded by FSDP2; with
"grid" over two of four ranks, and over the other two by tensor parallelism; with "flat" by FSDP1, the whole model as one
vector, with "flat layers" one for each layer, with "flat vector" without names. With "resumed", a first fit ends after the
first of two epochs and is saved, and a second one goes on from the checkpoint.
"""

import importlib
import os
import sys
from contextlib import nullcontext
from typing import Any

import torch
from launch import part_of_each_batch, place
from tiny import make_module
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from legibility.lightning_plugins import (
    ActivationSparsity,
    GroupSparsity,
    L1InsteadOfL2,
    L1Sparsity,
    Schedule,
    StudentLegibility,
    TopKSparsity,
    WiringCost,
)
from legibility.students import MLPStudent

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # before torch 2.6
    from torch.distributed._composable.fsdp import fully_shard  # type: ignore[attr-defined]


def _flat_on_cpu(namespace: str, how: str) -> Any:
    """FSDP1, which Lightning refuses without a GPU, but not somebody's own; PyTorch shards on the CPU if told so."""
    strategies: Any = importlib.import_module(f"{namespace}.strategies")
    policy = ModuleWrapPolicy({nn.Linear}) if "layers" in how else None
    original = how != "flat vector"

    class OnCPU(strategies.FSDPStrategy):  # type: ignore[misc]
        def _setup_model(self, model: nn.Module) -> nn.Module:
            cpu = torch.device("cpu")
            return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=cpu, use_orig_params=original)

    return OnCPU(process_group_backend="gloo", state_dict_type="sharded")


class Words(nn.Module):
    """Takes the first number for one of 40 words, of which a batch holds few and some are in none."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 64)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 10) -> (n, 64)."""
        found: Tensor = self.table((4 * x[:, 0]).round().long().clamp(-20, 19) + 20)
        return found


def _full(tensors: Any) -> list[Tensor]:
    return [getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)().detach().clone() for tensor in tensors]


def main(namespace: str, out: str, which: str, how: str = "whole") -> None:
    """Trains 2 x 12 batches and saves what happened on this rank."""
    torch.set_num_threads(1)
    pl = importlib.import_module(namespace)
    world, rank = place()
    flat = how.startswith("flat")
    pieces: Any = importlib.import_module("legibility.losses._pieces")
    pieces.PIECE = 512  # so that the larger weights come in pieces
    rows: Any
    grid = how.startswith("grid")
    rows, share = part_of_each_batch(12, together=2 if grid else 1)

    def fit(epochs: int, start: str | None = None, save: str | None = None) -> dict[str, Any]:
        module = make_module(pl, optimizer="adamw", weight_decay=0.3 if which == "instead" else 0.0)
        if which == "instead":
            module.net.append(nn.Dropout(0.5))
        if which == "words":
            module.net[0] = Words()
        kept: dict[str, Any] = {"gradients": []}

        class Sharded(type(module)):  # type: ignore[misc]
            def configure_model(self) -> None:
                if world == 1 or flat:
                    return
                if grid:
                    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
                    parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)
                for layer in self.net:
                    if isinstance(layer, nn.Linear):
                        fully_shard(layer, mesh=self.device_mesh["data_parallel"])
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

            def on_before_optimizer_step(self, optimizer: Any) -> None:
                if not flat:
                    kept["gradients"].append(_full(p.grad for p in self.net.parameters()))

            def on_train_end(self) -> None:
                cut = flat and world > 1
                model = self.trainer.model
                with FullyShardedDataParallel.summon_full_params(model, writeback=False) if cut else nullcontext():
                    kept["weights"] = torch.cat([weight.flatten() for weight in _full(self.net.parameters())])
                kept["names"] = [] if cut else list(self.state_dict())
                kept["zeros"] = [
                    float(c.zero_share()) for c in trainer.callbacks if hasattr(c, "zero_share") and c.active
                ]

        module.__class__ = Sharded
        student = MLPStudent(width=16, depth=1)
        legibility = StudentLegibility(
            0.7, students=[student], warmup=0.0, summary=False, taps="net.2", learning_rate=3e-2
        )
        strategy: Any = "auto"
        if world > 1 and flat:
            strategy = _flat_on_cpu(namespace, how)
        elif world > 1:
            parallel = importlib.import_module(f"{namespace}.strategies").ModelParallelStrategy
            strategy = parallel(data_parallel_size=2, tensor_parallel_size=world // 2, process_group_backend="gloo")
        trainer = pl.Trainer(
            accelerator="cpu", devices=world, strategy=strategy, max_epochs=epochs, logger=False,
            callbacks={
                "legibility": [legibility],
                "zero": [L1Sparsity(0.0), TopKSparsity(0.0), GroupSparsity(0.0), WiringCost(0.0)],
                "activations": [ActivationSparsity(0.5, taps="net.1", kind="top_k", k=8)],
                "instead": [L1InsteadOfL2(), L1Sparsity(2.0, total_steps=24)],
                "words": [L1Sparsity(8.0, targets=["net.0.table.weight", "net.2.weight"], total_steps=24)],
                "l1": [L1Sparsity(2.0, total_steps=24)],
                "plain": [L1Sparsity(2.0, reweighted=False, schedule=Schedule.warm_up(0.3), total_steps=24)],
                "preconditioned": [L1Sparsity(1.0, preconditioned=0.1, total_steps=24)],
                "goal": [L1Sparsity(sparsity=0.6, total_steps=24)],
                "rows": [GroupSparsity(1.4, groups="rows", total_steps=24)],
                "columns": [GroupSparsity(1.4, groups="columns", total_steps=24)],
                "neurons": [GroupSparsity(1.0, groups="neurons", total_steps=24)],
                "wiring": [WiringCost(3.0, swap_every=4, total_steps=24)],
                "each": [TopKSparsity(0.8, heal=0.3, total_steps=24)],
                "latent": [
                    L1Sparsity(3.0, targets=["net.0.*", "net.4.*"], total_steps=24, latent=True),
                    TopKSparsity(0.8, targets="net.2.*", heal=0.3, total_steps=24, latent=True),
                ],
                "several": [
                    L1Sparsity(1.0, targets="net.2.*", preconditioned=0.1, total_steps=24),
                    TopKSparsity(0.8, targets="net.0.*", heal=0.3, total_steps=24),
                    GroupSparsity(1.4, targets="net.4.*", groups="columns", total_steps=24),
                ],
                "by rows": [
                    TopKSparsity(0.9, targets=["net.0.*", "net.4.*"], minimum_per_row=3, total_steps=24),
                    TopKSparsity(0.5, targets="net.2.*", scope="2:4", total_steps=24),
                ],
                "top_k": [TopKSparsity(0.8, scope="global", total_steps=24)],
            }[which],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(rows, share), ckpt_path=start)
        if save is not None:
            trainer.save_checkpoint(save)
        if which == "legibility":
            assert legibility.built is not None
            networks = legibility.built.cohort.networks.values()
            kept["students"] = [p.detach() for network in networks for p in network.parameters()]
            kept["active"] = legibility.built.cohort.active
        return kept

    if "resumed" in how:
        fit(1, save=f"{out}.ckpt")
    result = fit(2, start=f"{out}.ckpt" if "resumed" in how else None)
    torch.save(result, f"{out}-{world}-{rank}.pt")
    if world > 1:
        torch.distributed.barrier()
        # gloo's threads abort about one exit in ten ("terminate called without an active exception"): leave at once.
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
