"""Latent weights: what thresholds took is kept beneath them."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import loader, make_module, net, weights_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from legibility.lightning_plugins import L1Sparsity, Schedule, TopKSparsity
from legibility.losses import reweighted_soft_threshold, soft_threshold

STEPS = 8  # one epoch of `loader()`


def by_hand(cut: Callable[[Tensor, float, int], Tensor]) -> Tensor:
    """Gradients at the cut weights, steps of a dense copy: AdamW, 2 epochs."""
    torch.manual_seed(0)
    model = net()
    dense = [p.detach().clone() for p in model.parameters()]
    sizes = [float(p.square().mean().sqrt()) for p in dense]
    optimizer = torch.optim.AdamW([nn.Parameter(p) for p in dense], lr=1e-2, weight_decay=0.0)
    latent = optimizer.param_groups[0]["params"]
    for step, (x, y) in enumerate([*loader(), *loader()]):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        for parameter, used in zip(latent, model.parameters(), strict=True):
            parameter.grad = used.grad
        optimizer.step()
        with torch.no_grad():
            for used, parameter, size in zip(model.parameters(), latent, sizes, strict=True):
                used.copy_(cut(parameter.detach(), size, step) if used.ndim == 2 else parameter)
    return weights_of(model)


@pytest.mark.parametrize("reweighted", [False, True])
def test_l1_equals_a_dense_copy_kept_by_hand(pl: Any, trainer: Callable[..., Any], reweighted: bool) -> None:
    def cut(weight: Tensor, size: float, step: int) -> Tensor:
        total = 4.0 * size * (step + 1) / (2 * STEPS)
        return (
            reweighted_soft_threshold(weight, total, epsilon=0.1 * size)
            if reweighted
            else soft_threshold(weight, total)
        )

    module = make_module(pl, optimizer="adamw")
    trainer(L1Sparsity(4.0, reweighted=reweighted, heal=0.0, latent=True), max_epochs=2).fit(module, loader())
    torch.testing.assert_close(weights_of(module.net), by_hand(cut), rtol=1e-3, atol=1e-5)
    assert 0.2 < (weights_of(module.net) == 0).float().mean() < 1


def test_top_k_equals_a_dense_copy_kept_by_hand(pl: Any, trainer: Callable[..., Any]) -> None:
    def cut(weight: Tensor, size: float, step: int) -> Tensor:
        threshold = float(weight.abs().flatten().topk(round(0.2 * weight.numel()) + 1).values[-1])
        return soft_threshold(weight, threshold)

    module = make_module(pl, optimizer="adamw")
    trainer(TopKSparsity(0.8, schedule=Schedule(), latent=True), max_epochs=2).fit(module, loader())
    expected = by_hand(cut)
    # The threshold may keep one in a thousand more until the last step.
    assert ((weights_of(module.net) == 0) != (expected == 0)).float().mean() < 0.01
    assert (weights_of(module.net) - expected).norm() < 0.05 * expected.norm()


MAKERS: dict[str, Callable[[], Any]] = {
    "l1": lambda: L1Sparsity(3.0, heal=0.4, latent=True, total_steps=4 * STEPS),
    "goal": lambda: L1Sparsity(sparsity=0.7, latent=True, total_steps=4 * STEPS),
    "top-k": lambda: TopKSparsity(0.8, heal=0.4, latent=True, total_steps=4 * STEPS),
}


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("which", MAKERS)
def test_resume_equals_uninterrupted(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, which: str, stop: int
) -> None:
    whole, half, resumed = (make_module(pl, optimizer="adamw") for _ in range(3))
    trainer(MAKERS[which](), max_epochs=4).fit(whole, loader())
    first = trainer(MAKERS[which](), max_epochs=stop)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    trainer(MAKERS[which](), max_epochs=4).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert (weights_of(whole) == 0).any()


@pytest.mark.parametrize(
    "sparse",
    [L1Sparsity(0.5, reweighted=False, heal=0.0, latent=True), TopKSparsity(0.5, latent=True)],
    ids=["l1", "top-k"],
)
def test_in_half_precision_rounding_is_kept_too(pl: Any, trainer: Callable[..., Any], sparse: Any) -> None:
    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(40, 40, dtype=torch.bfloat16)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(0.0 * p.float().sum() for p in self.parameters())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    start = module.layer.weight.detach().clone()
    trainer(sparse, max_epochs=50).fit(module, loader())
    size = float(start.float().square().mean().sqrt())
    threshold = 0.5 * size if isinstance(sparse, L1Sparsity) else float(start.float().abs().median())
    expected = soft_threshold(start.float(), threshold)
    torch.testing.assert_close(module.layer.weight.float(), expected, rtol=8e-3, atol=1e-4)


def test_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match="`preconditioned` and `latent`"):
        L1Sparsity(1.0, preconditioned=0.1, latent=True)
    for other in ({"scope": "2:4"}, {"minimum_per_row": 1}):
        with pytest.raises(ValueError, match="`latent` shrinks weights by one threshold"):
            TopKSparsity(0.5, latent=True, **other)


@pytest.fixture
def sharded() -> Iterator[nn.Parameter]:
    """A weight whose columns are spread over the ranks, of which there is one."""
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        yield nn.Parameter(distribute_tensor(torch.randn(6, 6), mesh, [Shard(1)]))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("callback", [L1Sparsity(1.0, latent=True), TopKSparsity(0.5, latent=True)])
def test_shards_are_saved_whole_and_copied_not_at_all(sharded: nn.Parameter, callback: Any) -> None:
    """A copy has no ranks to put its pieces together with."""
    callback._weights, callback._start = {"layer.weight": sharded}, 0
    callback._begin(None, fresh=True)
    taken = callback._tensors["taken.layer.weight"].normal_()
    assert torch.equal(callback.state_dict()["tensors"]["taken.layer.weight"], taken)
    callback._weights = {}
    copy = pickle.loads(pickle.dumps(callback))
    assert "taken.layer.weight" not in copy._tensors and not copy._layouts


@pytest.mark.parametrize("other", ["whole", "on all alike", "over another mesh", "by rows"])
def test_one_count_is_of_weights_that_are_shared_out_alike(sharded: nn.Parameter, other: str) -> None:
    mesh = init_device_mesh("cpu", (1, 1)) if other == "over another mesh" else init_device_mesh("cpu", (1,))
    placements: Any = {"on all alike": [Replicate()], "over another mesh": [Shard(0), Shard(1)]}.get(other, [Shard(0)])
    weight = torch.randn(6, 6)
    callback: Any = TopKSparsity(0.5, scope="global")
    callback._weights = {
        "layer.weight": sharded,
        "head.weight": nn.Parameter(weight if other == "whole" else distribute_tensor(weight, mesh, placements)),
    }
    message = r"layer\.weight and head\.weight are not shared out alike"
    with nullcontext() if other == "by rows" else pytest.raises(ValueError, match=message):
        callback._begin(None, fresh=True)
