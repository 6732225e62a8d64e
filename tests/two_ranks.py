"""A program that one process or two ranks run: the same global batches, then weights and gradients to a file.

    python two_ranks.py NAMESPACE OUT CALLBACK [ACCUMULATE]

With WORLD_SIZE=2 and LOCAL_RANK set, each rank takes its half of every batch of 16.
"""

import importlib
import os
import sys
from typing import Any

import torch
from by_hand import make_manual
from launch import part_of_each_batch, place
from manual_programs import attached
from tiny import make_module, weights_of
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from legibility.lightning_plugins import (
    ActivationSparsity,
    GroupSparsity,
    L1Sparsity,
    StudentLegibility,
    TopKSparsity,
    WiringCost,
)
from legibility.students import MLPStudent


def main(namespace: str, out: str, which: str, accumulate: str = "1") -> None:
    """Trains 24 batches and saves what happened on this rank."""
    torch.set_num_threads(1)
    pl = importlib.import_module(namespace)
    world, rank = place()
    rows: Any
    rows, share = part_of_each_batch(24)
    module = make_manual(pl, attached, ["g", "d"]) if which == "manual" else make_module(pl)
    students = [MLPStudent(width=16, depth=1), MLPStudent(width=8, depth=2)]
    where: dict[str, Any] = {"model": "nets.g", "imitate": "distribution"} if which == "manual" else {"taps": "net.0"}
    legibility = StudentLegibility(0.7, students=students, warmup=0.0, summary=False, **where)
    sparse: dict[str, Any] = {
        "l1": L1Sparsity(2.0),
        "neurons": GroupSparsity(1.0, groups="neurons"),
        "wiring": WiringCost(2.0, swap_every=4),
        "top_k": TopKSparsity(0.8, scope="global"),
        "latent": L1Sparsity(4.0, latent=True, reweighted=False),
        "latent top_k": TopKSparsity(0.8, scope="global", latent=True),
        "goal": L1Sparsity(sparsity=0.6),
        "loss_budget": L1Sparsity(loss_budget=1.5, monitor="task", heal=0.0),  # each rank logs a loss of its own
        "activations": ActivationSparsity(0.5, taps="net.1", kind="top_k", k=8),
    }
    callbacks = [sparse.get(which, legibility)]
    strategy: Any = "auto"
    if world > 1:
        strategies = importlib.import_module(f"{namespace}.strategies")
        # Only the discriminator's optimizer follows the first of the GAN's losses.
        strategy = strategies.DDPStrategy(process_group_backend="gloo", find_unused_parameters=which == "manual")
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_epochs=1, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, accumulate_grad_batches=int(accumulate),
    )  # fmt: skip
    learned: list[list[torch.Tensor]] = []
    own = {id(p) for p in module.parameters()}

    def students_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        if not any(id(p) in own for p in weights):
            learned.append([p.grad.clone() for p in weights])

    watching = register_optimizer_step_pre_hook(students_step)  # the callback has no hook that shows their gradients
    trainer.fit(module, DataLoader(rows, batch_size=share))
    watching.remove()
    result = {"weights": weights_of(module), "gradients": module.seen}
    if which == "wiring":
        result["places"] = sparse["wiring"].wiring.places
    if which not in sparse:
        assert legibility.built is not None
        cohort = legibility.built.cohort
        result["students"] = {name: weights_of(network) for name, network in cohort.networks.items()}
        result["active"], result["student_gradients"] = cohort.active, learned
    torch.save(result, f"{out}-{world}-{rank}.pt")
    if world > 1:
        torch.distributed.barrier()
        # gloo's threads abort about one exit in ten ("terminate called without an active exception"): leave at once.
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
