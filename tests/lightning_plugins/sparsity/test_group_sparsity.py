"""GroupSparsity: exact against a hand-written loop, whole groups of exact zeros, goals, resume, what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, net, weights_of
from torch import nn

from legibility.lightning_plugins import GroupSparsity, Schedule, remove_dead_neurons
from legibility.losses import group_soft_threshold

STEPS = 8  # one epoch of `loader()`


def by_hand(strength: float, groups: str, epochs: int, heal: float, rate: Callable[[int], float]) -> Any:
    """The same training written out, with the formulas of the class's docstring."""
    torch.manual_seed(0)
    model: Any = net()
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second, third = model[0], model[2], model[4]
    families: list[list[tuple[Any, int]]]
    if groups == "neurons":
        families = [
            [(first.weight, 0), (first.bias, 0), (second.weight, 1)],
            [(second.weight, 0), (second.bias, 0), (third.weight, 1)],
        ]
    else:
        families = [[(layer.weight, int(groups == "columns"))] for layer in (first, second, third)]

    def joined(family: Any) -> torch.Tensor:
        """One row for each group."""
        return torch.cat(
            [w.detach().movedim(d, 0).flatten(1) if w.ndim > 1 else w.detach()[:, None] for w, d in family], 1
        )

    sizes = [float(joined(family).square().mean().sqrt()) for family in families]
    penalised, done = round(epochs * STEPS * (1 - heal)), 0
    frozen: list[torch.Tensor] = []
    for _ in range(epochs):
        for x, y in loader():
            for group in step.param_groups:
                group["lr"] = rate(done)
            step.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            step.step()
            moved = [w for family in families for w, _ in family]
            with torch.no_grad():
                if done >= penalised:
                    for w, zeros in zip(moved, frozen, strict=True):
                        w[zeros] = 0.0
                else:
                    for family, size in zip(families, sizes, strict=True):
                        threshold = strength * size / penalised * rate(done) / rate(0)
                        shortened = group_soft_threshold(joined(family), threshold, dim=1)
                        widths = [w[0].numel() if d == 0 else len(w) for w, d in family]
                        for (w, d), part in zip(family, torch.split(shortened, widths, 1), strict=True):
                            w.copy_(part.view(w.movedim(d, 0).shape).movedim(0, d) if w.ndim > 1 else part[:, 0])
                done += 1
                if done == penalised:
                    frozen = [w == 0 for w in moved]
    return model


@pytest.mark.parametrize("groups", ["rows", "columns", "neurons"])
def test_equals_a_loop_written_by_hand(pl: Any, trainer: Callable[..., Any], groups: Any) -> None:
    module = make_module(pl)
    module.configure_optimizers = lambda: _falling(module)
    strength = 0.9 if groups == "neurons" else 1.2
    trainer(GroupSparsity(strength, groups=groups, heal=0.25), max_epochs=4).fit(module, loader())
    expected = by_hand(strength, groups, 4, 0.25, lambda step: 0.1 * 0.97**step)
    torch.testing.assert_close(weights_of(module.net), weights_of(expected), rtol=1e-4, atol=1e-6)
    zeros = weights_of(module.net) == 0
    assert 64 < zeros.sum() < 4500 and torch.equal(zeros, weights_of(expected) == 0)


def _falling(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_dead_neurons_are_whole_and_can_go(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl, optimizer="adamw")
    sparse = GroupSparsity(1.0, groups="neurons", schedule=Schedule.warm_up(0.3))
    fit = trainer(sparse, max_epochs=4, log_every_n_steps=1)
    fit.fit(module, loader())
    first, second = module.net[0], module.net[2]
    dead = (first.weight == 0).all(1)
    assert 0 < dead.sum() < 64
    assert torch.equal(dead, first.bias == 0) and (second.weight[:, dead] == 0).all()
    both = dead.sum() + (second.weight == 0).all(1).sum()
    assert fit.callback_metrics["legibility/group/dead"] == pytest.approx(float(both) / 128)
    smaller = sparse.remove(module.net)
    assert sum(smaller.removed.values()) == both
    x = torch.randn(50, 10)
    torch.testing.assert_close(smaller.model(x), module.net(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", ["rows", "heads", "neurons"])
def test_the_budget_is_the_most_that_a_group_can_lose(pl: Any, trainer: Callable[..., Any], groups: Any) -> None:
    class Still(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.TransformerEncoderLayer(16, 4, 24)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(0.0 * p.sum() for p in self.net.parameters())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.3)

    module = Still()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    sparse = GroupSparsity(0.5, groups=groups, heal=0.0)
    trainer(sparse, max_epochs=2).fit(module, loader())
    after = dict(module.named_parameters())
    families: dict[str, Any] = {
        "rows": [["net.linear1.weight"]],
        "neurons": [["net.linear1.weight", "net.linear1.bias", "net.linear2.weight"]],
        "heads": [["net.self_attn.in_proj_weight", "net.self_attn.in_proj_bias", "net.self_attn.out_proj.weight"]],
    }
    for family in families[groups]:
        count = 4 if groups == "heads" else 24

        def length(weights: Any, family: Any = family, count: int = count) -> torch.Tensor:
            squares = torch.zeros(count)
            for name in family:
                w = weights[name].detach().square()
                if groups == "heads":
                    w = w.view(16, 4, -1).movedim(1, 0) if "out_proj" in name else w.view(3, 4, -1).movedim(1, 0)
                elif "linear2" in name:
                    w = w.T
                squares += w.reshape(count, -1).sum(1)
            return squares.sqrt()

        typical = length(before).square().mean().sqrt()
        torch.testing.assert_close(length(before) - length(after), (0.5 * typical).expand(count), rtol=1e-4, atol=1e-5)
    touched = {name for name, value in before.items() if not torch.equal(value, after[name].detach())}
    family = set(families[groups][0]) - {"net.self_attn.in_proj_bias"}  # zero from the start
    assert touched == family or (groups == "rows" and touched > family)


def test_strength_zero_is_no_callback(pl: Any, trainer: Callable[..., Any]) -> None:
    bare, with_callback = make_module(pl), make_module(pl)
    trainer().fit(bare, loader())
    trainer(GroupSparsity(0.0, groups="neurons")).fit(with_callback, loader())
    assert torch.equal(weights_of(bare), weights_of(with_callback))


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_equals_uninterrupted(pl: Any, trainer: Callable[..., Any], tmp_path: Path, stop: int) -> None:
    def sparse() -> GroupSparsity:
        return GroupSparsity(groups="neurons", sparsity=0.5, heal=0.4, total_steps=4 * STEPS)

    whole, half, resumed = (make_module(pl, optimizer="adamw") for _ in range(3))
    trainer(sparse(), max_epochs=4).fit(whole, loader())
    first = trainer(sparse(), max_epochs=stop)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(sparse(), max_epochs=4).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert (weights_of(whole) == 0).any()


def test_a_goal_is_a_share_of_groups(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl, optimizer="adamw")
    sparse = GroupSparsity(groups="neurons", sparsity=0.5)
    fit = trainer(sparse, max_epochs=40, log_every_n_steps=40)
    fit.fit(module, loader())
    assert float(fit.callback_metrics["legibility/group/dead"]) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.0, "groups": "filters"}, "`groups` must be one of 'rows', .* got 'filters'"),
        ({"strength": -1.0}, "`strength`.*-1"),
        ({}, "`strength` is missing"),
        ({"sparsity": 0.5, "loss_budget": 0.1}, "two goals"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupSparsity(**options)


def test_no_groups_is_said_before_the_first_step(module: Any, trainer: Callable[..., Any]) -> None:
    before = weights_of(module)
    with pytest.raises(ValueError, match='`groups` = "heads" finds none in this model'):
        trainer(GroupSparsity(1.0, groups="heads")).fit(module, loader())
    with pytest.raises(ValueError, match='"neurons" finds none.*net.0: net.2.weight is excluded'):
        trainer(GroupSparsity(1.0, groups="neurons", exclude="net.2.weight")).fit(module, loader())
    assert torch.equal(before, weights_of(module))


def test_what_is_left_out_is_printed(
    module: Any, trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = GroupSparsity(1.0, groups="neurons", exclude="net.4.weight")
    trainer(sparse).fit(module, loader())
    assert "neurons of net.0 (64). Left out: net.4: its output is the model's; net.2: net.4.weight is excluded." in (
        capsys.readouterr().out
    )
    assert set(sparse.left_out) == {"net.2", "net.4"}


def test_a_reader_in_the_training_step_keeps_a_layer_out(pl: Any, trainer: Callable[..., Any]) -> None:
    class Coder(pl.LightningModule):  # type: ignore[misc]
        net: Any
        encoder: Any
        decoder: Any
        classes: Any

        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder, self.classes = nn.Linear(10, 8), nn.Linear(8, 10), nn.Linear(8, 10)
            self.net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 10))

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(self.decoder(self.encode(x)))

        def encode(self, x: torch.Tensor) -> Any:
            return torch.relu(self.encoder(x))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            size = sum(layer.weight.abs().sum() for layer in self.net if isinstance(layer, nn.Linear))
            loss = nn.functional.cross_entropy(self.classes(self.encode(x)), y)
            return loss + nn.functional.mse_loss(self(x), x) + 1e-4 * size

        def on_train_epoch_end(self) -> None:
            repr(self.net), vars(self), self.net[0].weight.norm(), str(self.net)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Coder()
    sparse = GroupSparsity(1.0, groups="neurons")
    trainer(sparse).fit(module, loader())
    assert "is called by Coder.encode" in sparse.left_out["encoder"] and "net.0" not in sparse.left_out
    with torch.no_grad():
        module.decoder.weight[:, :4] = 0
        module.net[2].weight[:, :4] = 0
    smaller: Any = remove_dead_neurons(module)
    assert "encoder" not in smaller.removed and smaller.removed["net.0"] >= 4
    batch = next(iter(loader()))
    torch.testing.assert_close(smaller.model(batch[0]), module(batch[0]), rtol=1e-6, atol=1e-6)
    smaller.model.training_step(batch, 0).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_lose_their_budget_too(pl: Any, trainer: Callable[..., Any], dtype: torch.dtype) -> None:
    class Still(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(30, 30, dtype=dtype)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 0.0 * self.layer.weight.float().sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.3)

    module = Still()
    before = module.layer.weight.detach().float()
    trainer(GroupSparsity(0.5, heal=0.0), max_epochs=25).fit(module, loader())  # 200 steps, each far below an ulp
    rms = float(before.square().mean().sqrt())
    expected = group_soft_threshold(before, 0.5 * rms, dim=1)
    lost = (before - module.layer.weight.detach().float()).square().sum().sqrt()
    assert float(lost) == pytest.approx(float((before - expected).square().sum().sqrt()), rel=0.1)
