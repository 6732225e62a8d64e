"""L1Sparsity: exact against a hand-written loop, true zeros, excluded parameters never move, resume is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, net, weights_of
from torch import nn

from legibility.lightning_plugins import L1Sparsity
from legibility.lightning_plugins.sparsity.weights._weights import penalisable_weights, target_weights

STEPS = 8  # one epoch of `loader()`


def by_hand(strength: float, *, reweighted: bool, heal: float, epochs: int, optimizer: str = "sgd") -> nn.Module:
    """The same training written out, with the formulas of the class's docstring."""
    torch.manual_seed(0)
    model = net()
    if optimizer == "sgd":
        step: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    else:
        step = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    sizes = [float(p.detach().square().mean().sqrt()) for p in matrices]
    penalised = round(epochs * STEPS * (1 - heal))
    frozen: list[torch.Tensor] = []
    done = 0
    for _ in range(epochs):
        for x, y in loader():
            step.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            step.step()
            with torch.no_grad():
                for index, (weight, size) in enumerate(zip(matrices, sizes, strict=True)):
                    if done >= penalised:
                        weight[frozen[index]] = 0.0
                        continue
                    tau = torch.full_like(weight, strength * size / penalised)
                    if reweighted:
                        tau = tau * 0.1 * size / (weight.abs() + 0.1 * size)
                    weight.copy_(weight.sign() * (weight.abs() - tau).clamp(min=0))
                done += 1
                if done == penalised:
                    frozen = [weight == 0 for weight in matrices]
    return model


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("reweighted", "heal"), [(False, 0.0), (True, 0.0), (True, 0.35), (False, 0.5)])
def test_equals_a_loop_written_by_hand(
    pl: Any, trainer: Callable[..., Any], reweighted: bool, heal: float, optimizer: str
) -> None:
    module = make_module(pl, optimizer=optimizer)
    trainer(L1Sparsity(2.0, reweighted=reweighted, heal=heal), max_epochs=3).fit(module, loader())
    expected = by_hand(2.0, reweighted=reweighted, heal=heal, epochs=3, optimizer=optimizer)
    # Near its threshold a reweighted weight multiplies what the order of two roundings leaves.
    torch.testing.assert_close(weights_of(module.net), weights_of(expected), rtol=1e-5, atol=1e-6)
    assert (weights_of(module.net) == 0).sum() > 100


def test_the_budget_is_the_most_that_a_weight_can_lose(pl: Any, trainer: Callable[..., Any]) -> None:
    class Still(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(50, 50)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 0.0 * self.layer(torch.ones(1, 50)).sum()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
            # The learning rate changes the pace, never the budget.
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    module = Still()
    before = module.layer.weight.detach().clone()
    trainer(L1Sparsity(0.5, reweighted=False, heal=0.0), max_epochs=4).fit(module, loader())
    lost = (before - module.layer.weight.detach()).abs().max()
    assert 0 < lost <= 0.5 * before.square().mean().sqrt() + 1e-6


def test_strength_zero_is_no_callback(pl: Any, trainer: Callable[..., Any]) -> None:
    bare, with_callback = make_module(pl), make_module(pl)
    trainer().fit(bare, loader())
    trainer(L1Sparsity(0.0)).fit(with_callback, loader())
    assert torch.equal(weights_of(bare), weights_of(with_callback))


def test_resume_equals_uninterrupted_also_while_healing(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    whole = make_module(pl, optimizer="adamw")
    trainer(L1Sparsity(2.0, heal=0.5), max_epochs=4).fit(whole, loader())
    for stop in (1, 3):
        half = make_module(pl, optimizer="adamw")
        # The length of the whole fit is what the budget is spread over.
        first = trainer(L1Sparsity(2.0, heal=0.5, total_steps=4 * STEPS), max_epochs=stop)
        first.fit(half, loader())
        first.save_checkpoint(tmp_path / "half.ckpt")
        torch.load(tmp_path / "half.ckpt", weights_only=True)
        resumed = make_module(pl, optimizer="adamw")
        second = trainer(L1Sparsity(2.0, heal=0.5, total_steps=4 * STEPS), max_epochs=4)
        second.fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
        assert torch.equal(weights_of(whole), weights_of(resumed))


def test_nothing_is_left_behind(pl: Any, trainer: Callable[..., Any], module: Any) -> None:
    fit = trainer(L1Sparsity(1.0))
    fit.fit(module, loader())
    assert not any(o._optimizer_step_post_hooks for o in fit.optimizers)
    module.configure_optimizers = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer(L1Sparsity(1.0)).fit(module, loader())


def test_what_is_excluded_never_moves() -> None:
    model = nn.Sequential(
        nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    )
    model.append(nn.Linear(4, 7, bias=False))
    model[4].weight = model[0].weight  # tied: excluded with the embedding
    model.append(nn.Linear(7, 7).requires_grad_(False))
    assert list(penalisable_weights(model)) == ["1.weight"]


def test_targets_and_exclusions() -> None:
    model = net()
    assert list(target_weights(model, "*", ())) == ["0.weight", "2.weight", "4.weight"]
    assert list(target_weights(model, ["0.*", "2.*"], "2.weight")) == ["0.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "`strength`.*-1"),
        ({"strength": float("nan")}, "`strength`.*nan"),
        ({"strength": 1.0, "heal": 1.0}, "`heal`"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        L1Sparsity(**options)


def test_patterns_that_match_nothing_stop_before_the_first_step(module: Any, trainer: Callable[..., Any]) -> None:
    before = weights_of(module)
    with pytest.raises(ValueError, match="`targets` pattern 'nett.*'.*Near: .*net.0.weight"):
        trainer(L1Sparsity(1.0, targets="nett.*")).fit(module, loader())
    with pytest.raises(ValueError, match="`exclude`.*leaves none"):
        trainer(L1Sparsity(1.0, targets="net.0.*", exclude="net.*")).fit(module, loader())
    assert torch.equal(before, weights_of(module))


def test_an_endless_fit_asks_for_its_length(module: Any, trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="`total_steps`"):
        trainer(L1Sparsity(1.0), max_epochs=-1, max_time="00:00:00:05").fit(module, loader())


def test_the_share_of_zeros_is_logged(module: Any, trainer: Callable[..., Any]) -> None:
    fit = trainer(L1Sparsity(50.0, reweighted=False, heal=0.0), log_every_n_steps=1)
    fit.fit(module, loader())
    matrices = torch.cat([p.detach().flatten() for p in module.net.parameters() if p.ndim == 2])
    logged = fit.callback_metrics["legibility/l1/zeros"]
    torch.testing.assert_close(logged, (matrices == 0).float().mean())
    assert fit.callback_metrics["legibility/l1/strength"] == 50.0


def test_another_length_than_was_planned_is_asked_about(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    first = trainer(L1Sparsity(2.0), max_epochs=1)
    first.fit(make_module(pl), loader())
    first.save_checkpoint(tmp_path / "first.ckpt")
    with pytest.raises(ValueError, match="`total_steps`: this fit is planned for 16 steps, .* was for 8"):
        trainer(L1Sparsity(2.0), max_epochs=2).fit(make_module(pl), loader(), ckpt_path=str(tmp_path / "first.ckpt"))
    named = L1Sparsity(2.0, total_steps=16)
    trainer(named, max_epochs=2).fit(make_module(pl), loader(), ckpt_path=str(tmp_path / "first.ckpt"))
