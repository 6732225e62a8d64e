"""What holds for every callback that steps weights, whatever the model, the optimizer and the trainer do."""

import fnmatch
import importlib
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import loader, make_module, weights_of
from torch import Tensor, nn

from legibility.lightning_plugins import GroupSparsity, L1Sparsity, TopKSparsity, WiringCost
from legibility.lightning_plugins.sparsity.weights._weights import target_weights

KINDS: dict[str, Callable[..., Any]] = {
    "plain": lambda strength=0.5, **o: L1Sparsity(strength, reweighted=False, follow_rate=False, **o),
    "reweighted": lambda **o: L1Sparsity(2.0, follow_rate=False, **o),
    "preconditioned": lambda **o: L1Sparsity(0.5, preconditioned=0.1, follow_rate=False, **o),
    "goal": lambda **o: L1Sparsity(sparsity=0.8, **o),
    "top-k": lambda **o: TopKSparsity(0.8, **o),
    "global top-k": lambda **o: TopKSparsity(0.8, scope="global", minimum_per_row=1, **o),
    "latent": lambda **o: L1Sparsity(0.5, reweighted=False, follow_rate=False, latent=True, **o),
    "latent top-k": lambda **o: TopKSparsity(0.8, latent=True, **o),
    "wiring": lambda **o: WiringCost(0.5, swap_every=3, follow_rate=False, **o),
    "rows": lambda strength=1.0, **o: GroupSparsity(strength, "rows", follow_rate=False, **o),
    "columns": lambda strength=1.0, **o: GroupSparsity(strength, "columns", follow_rate=False, **o),
    "neurons": lambda strength=1.0, **o: GroupSparsity(strength, "neurons", follow_rate=False, **o),
}


def idle(pl: Any, model: nn.Module) -> Any:
    """Trains a model whose gradients are all zero: only a callback moves anything."""

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(0.0 * p.float().sum() for p in self.parameters())

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.3)

    return Module()


def _random_net(seed: int) -> tuple[nn.Sequential, Callable[..., Any]]:
    choose = torch.Generator().manual_seed(seed)

    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=choose))]

    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    width = 12
    for _ in range(4):
        after = pick(8, 10, 12)
        layer: nn.Module = nn.Linear(width, after, bias=pick(True, False))
        layer = pick(
            lambda layer=layer: layer,
            lambda layer=layer: layer,
            lambda layer=layer: nn.utils.parametrizations.weight_norm(layer),
            lambda layer=layer: nn.utils.spectral_norm(layer),
            lambda layer=layer: layer.requires_grad_(False),
        )()
        layers += [layer, pick(nn.ReLU(), nn.Tanh(), nn.PReLU(after))]
        layers += pick([], [nn.BatchNorm1d(after)], [nn.LayerNorm(after)], [nn.Dropout(0.1)])
        width = after
    layers += [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 9), nn.ReLU(), nn.Linear(9, 3)]
    return nn.Sequential(*layers), pick


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_excluded_ever_moves(pl: Any, trainer: Callable[..., Any], kind: str, seed: int) -> None:
    """Random networks and exclusions; without gradients, whatever moves was moved by the callback."""
    net, pick = _random_net(2 * seed + (pl.__name__ == "pytorch_lightning"))
    last = len(net) - 3
    exclude = pick([f"*.{last}.weight"], [f"*.{last}.weight", f"*.{last - 2}.*"])
    if kind == "wiring":  # needs a chain: keep the last two layers
        exclude = [name for name in ("*.0.weight",) if net[0].weight.requires_grad and type(net[0]) is nn.Linear]
        exclude = [] if nn.utils.parametrize.is_parametrized(net[0]) or hasattr(net[0], "weight_orig") else exclude
    module = idle(pl, nn.ModuleDict({"net": net, "words": nn.Embedding(6, 5), "norm": nn.LayerNorm([4, 3])}))
    module.model["tied"] = nn.Linear(5, 6, bias=False)
    module.model["tied"].weight = module.model["words"].weight  # an output layer tied to the embedding
    # In `net`, what belongs to no norm and is computed from nothing has this name.
    plain = [name for name, _ in module.named_parameters() if re.fullmatch(r"model\.net\.\d+\.weight", name)]
    allowed = {name for name in plain if (p := module.get_parameter(name)).requires_grad and p.ndim == 2}
    allowed -= {name for name in plain if any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)}
    if kind == "neurons":
        allowed |= {name.removesuffix("weight") + "bias" for name in allowed}
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit = trainer(KINDS[kind](exclude=exclude), max_epochs=2)
    try:
        fit.fit(module, loader())
    except ValueError as error:
        assert kind == "neurons" and "finds none" in str(error)
        return
    moved = {name for name, p in module.named_parameters() if not torch.equal(before[name], p.detach())}
    assert moved <= allowed
    assert moved, "nothing moved at all"
    if kind not in ("neurons", "wiring"):
        assert moved == allowed


@pytest.mark.parametrize("kind", ["plain", "rows"])
def test_a_tied_weight_is_moved_once(pl: Any, trainer: Callable[..., Any], kind: str) -> None:
    found = []
    for tied in (False, True):
        torch.manual_seed(0)
        model: Any = nn.ModuleDict({"first": nn.Linear(20, 20)})
        if tied:
            model["second"] = nn.Linear(20, 20)
            model["second"].weight = model["first"].weight
        trainer(KINDS[kind]()).fit(idle(pl, model), loader())
        found.append(model["first"].weight.detach())
    assert torch.equal(*found)
    assert (found[0] == 0).any()


@pytest.mark.parametrize("kind", ["plain", "preconditioned", "top-k", "latent", "latent top-k", "wiring", "neurons"])
def test_an_accumulated_step_is_one_step(pl: Any, trainer: Callable[..., Any], kind: str) -> None:
    """4 batches of 2 rows to a step do what a batch of 8 rows does: one step of the callback for one of the optimizer."""
    whole, parts = (make_module(pl, optimizer="adamw") for _ in range(2))
    trainer(KINDS[kind](), max_epochs=2).fit(whole, loader(batch_size=8))
    trainer(KINDS[kind](), max_epochs=2, accumulate_grad_batches=4).fit(parts, loader(batch_size=2))
    torch.testing.assert_close(weights_of(parts.net), weights_of(whole.net), rtol=1e-3, atol=1e-4)
    zeros = [weights_of(module.net) == 0 for module in (whole, parts)]
    assert (zeros[0].any() or kind == "neurons") and (zeros[0] != zeros[1]).float().mean() < 5e-3


@pytest.mark.parametrize(
    "kind", ["plain", "preconditioned", "top-k", "latent", "latent top-k", "wiring", "rows", "neurons"]
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_moves_nothing(
    pl: Any, trainer: Callable[..., Any], kind: str, fused: bool
) -> None:
    """An ordinary optimizer isn't stepped on overflow; a fused one is, and finds out by itself."""
    precision = importlib.import_module(f"{pl.__name__}.plugins.precision")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = precision.MixedPrecision("16-mixed", "cpu", scaler=scaler)
    module = make_module(pl, optimizer="adamw")
    seen: list[tuple[bool, Tensor]] = []

    class Watch(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any) -> None:
            matrices = [p.detach().flatten() for p in module.net.parameters()]
            seen.append((args[4] % 3 == 1, torch.cat(matrices)))

    def training_step(batch: Any, batch_idx: int) -> Any:
        loss = nn.functional.cross_entropy(module.net(batch[0]), batch[1])
        return loss * float("inf") if batch_idx % 3 == 1 else loss

    module.training_step = training_step
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters(), lr=1e-2, fused=fused)
    module.on_before_optimizer_step = lambda optimizer: None
    trainer([KINDS[kind](), Watch()], max_epochs=1, plugins=[plugin], precision=None).fit(module, loader(rows=48))
    assert len(seen) == 6
    for (_, before), (overflowed, after) in itertools.pairwise(seen):
        if overflowed and kind == "top-k":  # the schedule goes on: weights may become zero, none changes otherwise
            assert torch.equal(after[after != 0], before[after != 0])
        elif overflowed and kind == "latent top-k":  # as well: weights may shrink
            assert (after.abs() <= before.abs()).all()
        else:
            assert torch.equal(after, before) == overflowed


def test_each_of_two_optimizers_pays_by_its_own_rate(pl: Any, trainer: Callable[..., Any]) -> None:
    """Two optimizers by hand, one stepped twice as often, one with a schedule: each weight loses its own budget."""

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.a, self.b = nn.Linear(10, 10), nn.Linear(10, 10)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            for optimizer in (first, second) if batch_idx % 2 else (first,):
                optimizer.zero_grad()
                self.manual_backward(sum(0.0 * p.sum() for p in self.parameters()))
                optimizer.step()
            self.lr_schedulers().step()

        def configure_optimizers(self) -> Any:
            first, second = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.a, self.b))
            return [first, second], [torch.optim.lr_scheduler.StepLR(first, 4, gamma=0.5)]

    module = Module()
    start = [m.weight.detach().clone() for m in (module.a, module.b)]
    trainer(L1Sparsity(0.4, reweighted=False, heal=0.0, total_steps=8)).fit(module, loader())  # 8 batches
    # 8 steps of an eighth each, the last four at half the rate; 4 steps of an eighth.
    for weight, before, share in zip((module.a, module.b), start, (0.75, 0.5), strict=True):
        tau = 0.4 * share * before.square().mean().sqrt()
        expected = before.sign() * (before.abs() - tau).clamp(min=0)
        torch.testing.assert_close(weight.weight.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("heal", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["plain", "top-k", "rows"])
def test_averaged_weights_get_the_zeros_of_the_trained_ones(
    pl: Any, trainer: Callable[..., Any], kind: str, heal: float
) -> None:
    callbacks = importlib.import_module(f"{pl.__name__}.callbacks")
    makers: list[Callable[[], Any]] = [lambda: callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=0.5)]
    if hasattr(callbacks, "EMAWeightAveraging"):
        makers.append(lambda: callbacks.EMAWeightAveraging(decay=0.9))

    def share(module: Any) -> float:
        zeros = [p.detach().flatten() == 0 for p in module.net.parameters() if p.ndim == 2]
        return float(torch.cat(zeros).float().mean())

    for average in makers:
        for first in (True, False):
            module = make_module(pl, optimizer="adamw")
            seen: list[float] = []
            trained: list[float] = []
            module.validation_step = lambda batch, index, module=module, seen=seen: seen.append(share(module))
            module.on_train_epoch_end = lambda module=module, trained=trained: trained.append(share(module))
            stronger = {"plain": {"strength": 3.0}, "rows": {"strength": 2.5}, "top-k": {}}[kind]
            both = [KINDS[kind](heal=heal, **stronger), average()]
            trainer(both if first else both[::-1], max_epochs=6, num_sanity_val_steps=0).fit(module, loader(), loader())
            assert seen[7::8] == pytest.approx(trained[: len(seen) // 8], abs=1e-6), "in each evaluation"
            assert trained[-1] > 0.2
            assert share(module) >= trained[-1] - 1e-6, "after the fit"


def test_evaluations_leave_training_alone(pl: Any, trainer: Callable[..., Any]) -> None:
    watched, alone = (make_module(pl, optimizer="adamw") for _ in range(2))
    trainer(L1Sparsity(2.0, heal=0.0), max_epochs=3, val_check_interval=3).fit(watched, loader(), loader())
    trainer(L1Sparsity(2.0, heal=0.0), max_epochs=3).fit(alone, loader())
    assert torch.equal(weights_of(watched.net), weights_of(alone.net))


def test_optimizers_with_master_weights_are_refused(pl: Any, trainer: Callable[..., Any]) -> None:
    class Masters(torch.optim.SGD):
        master_weights = True

    module = make_module(pl)
    module.configure_optimizers = lambda: Masters(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="`targets`: Masters keeps master weights.*master_weights=False"):
        trainer(L1Sparsity(1.0)).fit(module, loader())


@pytest.mark.parametrize("targets", ["0.weight", "0.weight_v", "1.parametrizations.weight.original0"])
def test_parametrised_weights_are_refused_by_name(targets: str) -> None:
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(old, nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=rf"`targets`: {targets[0]}\.weight is parametrised"):
        target_weights(model, targets, ())
    assert list(target_weights(model, "*", ())) == ["2.weight"]
