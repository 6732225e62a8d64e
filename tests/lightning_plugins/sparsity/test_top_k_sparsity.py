"""TopKSparsity: exact against a hand-written loop with sorting, resume, minimum of rows, several optimizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, net, weights_of
from torch import Tensor, nn

from legibility.lightning_plugins import Schedule, TopKSparsity, to_torch_sparse
from legibility.lightning_plugins.sparsity._weight_step import Stepped

STEPS = 8  # one epoch of `loader()`


def keep(weights: list[Tensor], count: int) -> None:
    """Keeps the largest of all by sorting."""
    flat = torch.cat([w.detach().flatten().abs() for w in weights])
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.argsort(descending=True)[:count]] = True
    for weight, mask in zip(weights, torch.split(kept, [w.numel() for w in weights]), strict=True):
        weight.detach().mul_(mask.reshape(weight.shape))


def by_hand(scope: str, heal: float, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    matrices: list[Tensor] = [p for p in model.parameters() if p.ndim == 2]
    moving, done = round(epochs * STEPS * (1 - heal)), 0
    frozen: list[Tensor] = []
    for _ in range(epochs):
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done > moving:
                for weight, zeros in zip(matrices, frozen, strict=True):
                    weight.detach()[zeros] = 0.0
                continue
            density = 1 - 0.9 * min(1.0, max(0.0, (done / moving - 0.01) / 0.49))
            for group in [matrices] if scope == "global" else [[matrix] for matrix in matrices]:
                keep(group, round(density * sum(weight.numel() for weight in group)))
            frozen = [weight == 0 for weight in matrices]
    return model


@pytest.mark.parametrize("heal", [0.0, 0.4])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_equals_sorting_by_hand(
    pl: Any, trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, scope: Any, heal: float
) -> None:
    monkeypatch.setattr("legibility.lightning_plugins.sparsity._top_k_sparsity._TOLERANCE", 0.0)
    module = make_module(pl, optimizer="adamw")
    trainer(TopKSparsity(0.9, scope=scope, heal=heal), max_epochs=3).fit(module, loader())
    torch.testing.assert_close(weights_of(module.net), weights_of(by_hand(scope, heal, 3)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("heal", [0.0, 0.4])
def test_the_density_asked_for_is_exact_in_the_end(pl: Any, trainer: Callable[..., Any], heal: float) -> None:
    module = make_module(pl, optimizer="adamw")
    fit = trainer(TopKSparsity(0.9, heal=heal), max_epochs=3, log_every_n_steps=1)
    fit.fit(module, loader())
    for weight in (p for p in module.net.parameters() if p.ndim == 2):
        # What stays may only vanish by itself; while healing, what is zero stays zero.
        assert int((weight != 0).sum()) == round(0.1 * weight.numel())
    assert fit.callback_metrics["legibility/top_k/zeros"] == pytest.approx(0.9, abs=0.001)


def test_every_unit_keeps_some_inputs(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl, optimizer="adamw")
    trainer(TopKSparsity(0.97, minimum_per_row=2), max_epochs=3).fit(module, loader())
    counts = [(p != 0).sum(1) for p in module.net.parameters() if p.ndim == 2]
    assert all(int(count.min()) >= 2 for count in counts)
    without = make_module(pl, optimizer="adamw")
    trainer(TopKSparsity(0.97), max_epochs=3).fit(without, loader())
    assert min(int((p != 0).sum(1).min()) for p in without.net.parameters() if p.ndim == 2) == 0


def test_nothing_asked_for_is_no_callback(pl: Any, trainer: Callable[..., Any]) -> None:
    bare, with_callback = make_module(pl), make_module(pl)
    trainer().fit(bare, loader())
    trainer(TopKSparsity(0.0)).fit(with_callback, loader())
    assert torch.equal(weights_of(bare), weights_of(with_callback))


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_equals_uninterrupted(pl: Any, trainer: Callable[..., Any], tmp_path: Path, stop: int) -> None:
    def sparse() -> TopKSparsity:
        return TopKSparsity(0.9, heal=0.4, total_steps=4 * STEPS)

    whole, half, resumed = (make_module(pl, optimizer="adamw") for _ in range(3))
    trainer(sparse(), max_epochs=4).fit(whole, loader())
    first = trainer(sparse(), max_epochs=stop)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    trainer(sparse(), max_epochs=4).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))


def test_two_optimizers_each_hold_their_share(pl: Any, trainer: Callable[..., Any]) -> None:
    class Halves(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.net = net()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            halves = (self.net[:2], self.net[2:])
            return [torch.optim.SGD(half.parameters(), lr=rate) for half, rate in zip(halves, (1.0, 0.01), strict=True)]

    module = Halves()
    # Lightning counts the steps of both; the schedule is one over the steps of each.
    trainer(TopKSparsity(0.5, scope="global", total_steps=3 * STEPS), max_epochs=3).fit(module, loader())
    first, *rest = (p.detach() for p in module.net.parameters() if p.ndim == 2)
    assert int((first != 0).sum()) == 320
    assert sum(int((weight != 0).sum()) for weight in rest) == (64 * 64 + 64 * 5) // 2


def test_nothing_is_left_behind(pl: Any, trainer: Callable[..., Any], module: Any) -> None:
    fit = trainer(TopKSparsity(0.5))
    fit.fit(module, loader())
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in fit.optimizers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "`sparsity`"),
        ({"sparsity": float("nan")}, "`sparsity`"),
        ({"sparsity": 0.5, "scope": "layer"}, "`scope`.*'layer'"),
        ({"sparsity": 0.5, "minimum_per_row": -1}, "`minimum_per_row`"),
        ({"sparsity": 0.5, "schedule": Schedule([(0.0, 2.0)])}, "`schedule`.*above 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopKSparsity(**options)


@pytest.mark.parametrize("heal", [0.0, 0.4])
def test_two_of_each_four_stay_and_are_the_largest(pl: Any, trainer: Callable[..., Any], heal: float) -> None:
    module = make_module(pl, optimizer="adamw")
    sparse = TopKSparsity(0.5, scope="2:4", exclude="net.0.*", heal=heal)
    trainer(sparse, max_epochs=4).fit(module, loader())
    assert not (module.net[0].weight == 0).any()
    for layer in (module.net[2], module.net[4]):
        fours = (layer.weight != 0).view(len(layer.weight), -1, 4).sum(-1)
        assert (fours == 2).all()
    found = to_torch_sparse(module.net.half(), "2:4")
    assert found.left["2"] == "is on cpu; 2:4 needs a CUDA device", "nothing but the device is missing"


def test_half_of_the_way_to_two_of_four_the_smallest_of_the_weaker_are_gone() -> None:
    sparse = TopKSparsity(0.5, scope="2:4", schedule=Schedule(((0.0, 0.5),)))
    weight = nn.Parameter(torch.tensor([[4.0, -3.0, 1.0, 0.4], [0.1, 0.2, -0.3, 5.0]]))
    sparse._move([Stepped("w", weight, weight.detach(), 1.0)], torch.optim.SGD([weight], lr=0.1), 0)
    assert weight.tolist() == [[4.0, -3.0, 1.0, torch.tensor(0.4).item()], [0.0, 0.0, torch.tensor(-0.3).item(), 5.0]]


def test_weights_that_have_no_fours_are_refused(pl: Any, trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r'`scope` = "2:4" needs matrices of 4 n columns, not net\.0\.weight'):
        trainer(TopKSparsity(0.5, scope="2:4")).fit(make_module(pl), loader())
    with pytest.raises(ValueError, match='`scope` = "2:4" leaves half'):
        TopKSparsity(0.9, scope="2:4")
