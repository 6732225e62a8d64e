"""ActivationSparsity: gradients equal the objective written out, in automatic and manual optimization."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, net, weights_of
from torch import Tensor, nn

from legibility.lightning_plugins import ActivationSparsity, Schedule
from legibility.losses import activation_l1, rectified_l1, tail_energy

OMEGA: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": activation_l1,
    "rectified": rectified_l1,
    "top_k": lambda a: tail_energy(a, 5),
}


def options(kind: Any) -> dict[str, Any]:
    return {"kind": kind, "k": 5 if kind == "top_k" else None}


def by_hand(kind: str, strengths: list[float], accumulate: int = 1, clip: float | None = None) -> list[list[Tensor]]:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    batches = list(loader())
    for first in range(0, len(batches), accumulate):
        optimizer.zero_grad()
        for x, y in batches[first : first + accumulate]:
            one = model[:2](x)
            two = model[2:4](one)
            term = (OMEGA[kind](one) + OMEGA[kind](two)) / 2
            loss = nn.functional.cross_entropy(model[4](two), y) + strengths[first // accumulate] * term
            (loss / accumulate).backward()  # type: ignore[no-untyped-call]
        seen.append([p.grad.detach().clone() for p in model.parameters() if p.grad is not None])
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return seen


def close(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", OMEGA)
def test_gradients_equal_the_objective_written_out(pl: Any, trainer: Callable[..., Any], kind: str) -> None:
    module = make_module(pl)
    sparse = ActivationSparsity(0.3, taps=["net.1", "net.3"], schedule=Schedule.warm_up(0.5), **options(kind))
    trainer(sparse).fit(module, loader())
    close(module.seen, by_hand(kind, [0.3 * min(1.0, step / 4) for step in range(1, 9)]))


def test_accumulated_and_clipped(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl, returns="dict")
    sparse = ActivationSparsity(0.3, taps=["net.1", "net.3"])
    trainer(sparse, accumulate_grad_batches=2, gradient_clip_val=0.5).fit(module, loader())
    close(module.seen, by_hand("l1", [0.3] * 4, accumulate=2, clip=0.5))


def test_by_hand_optimized(pl: Any, trainer: Callable[..., Any]) -> None:
    class Manual(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.net, self.seen = net(), list[list[Tensor]]()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            self.seen.append([p.grad.detach().clone() for p in self.net.parameters() if p.grad is not None])
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Manual()
    trainer(ActivationSparsity(0.3, taps=["net.1", "net.3"])).fit(module, loader())
    close(module.seen, by_hand("l1", [0.3] * 8))


def test_what_an_operation_in_place_overwrites_counts_as_it_was(pl: Any, trainer: Callable[..., Any]) -> None:
    def fit(inplace: bool) -> Tensor:
        module = make_module(pl)
        torch.manual_seed(0)
        module.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(inplace=inplace), nn.Linear(64, 5))
        trainer(ActivationSparsity(0.5, taps="net.0")).fit(module, loader())
        return weights_of(module)

    torch.testing.assert_close(fit(True), fit(False))


def test_channels_are_the_units_of_images(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    module.net = nn.Sequential(
        nn.Unflatten(1, (1, 2, 5)), nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 5)
    )
    start = [p.detach().clone() for p in module.net.parameters()]
    fit = trainer(ActivationSparsity(0.3, "net.2", kind="top_k", k=1), log_every_n_steps=1, max_steps=1)
    fit.fit(module, loader())
    with torch.no_grad():
        x = next(iter(loader()))[0].reshape(8, 1, 2, 5)
        a = nn.functional.conv2d(x, start[0], start[1]).relu()
    expected = tail_energy(a.permute(0, 2, 3, 1), 1)
    torch.testing.assert_close(fit.callback_metrics["legibility/activation/top_k"], expected)


def test_it_makes_activations_sparse(pl: Any, trainer: Callable[..., Any]) -> None:
    def active(strength: float) -> float:
        module = make_module(pl, optimizer="adamw")
        torch.manual_seed(0)
        module.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 5))
        trainer(ActivationSparsity(strength, taps="net.1", kind="rectified"), max_epochs=30).fit(module, loader())
        with torch.no_grad():
            return float((module.net[:2](loader(batch_size=64).dataset[:][0]) > 0).float().mean())

    assert active(1.0) < 0.5 * active(0.0)


def test_strength_zero_is_no_callback(pl: Any, trainer: Callable[..., Any]) -> None:
    bare, with_callback = make_module(pl), make_module(pl)
    trainer().fit(bare, loader())
    trainer(ActivationSparsity(0.0, "net.1")).fit(with_callback, loader())
    assert torch.equal(weights_of(bare), weights_of(with_callback))


def test_resume_equals_uninterrupted(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def sparse() -> ActivationSparsity:
        return ActivationSparsity(0.3, "net.*")

    whole, half, resumed = (make_module(pl, optimizer="adamw") for _ in range(3))
    trainer(sparse(), max_epochs=3).fit(whole, loader())
    first = trainer(sparse(), max_epochs=1)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(sparse(), max_epochs=3).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))


def test_a_budget_of_loss_is_spent_and_kept(pl: Any, trainer: Callable[..., Any]) -> None:
    found = {}
    for budget in (None, 0.3, 1e-9):
        module = make_module(pl, optimizer="adamw")
        goal: dict[str, Any] = {} if budget is None else {"loss_budget": budget, "monitor": "task"}
        sparse = ActivationSparsity(0.0 if budget is None else 1.0, "net.1", kind="top_k", k=4, **goal)
        trainer(sparse, max_epochs=60).fit(module, loader(shuffle=True))
        with torch.no_grad():
            x, y = loader(batch_size=64).dataset[:]
            hidden = module.net[:2](x)
            found[budget] = (float(nn.functional.cross_entropy(module.net(x), y)), float(tail_energy(hidden, 4)))
    assert found[None][0] < 0.1, "the task alone would go far below the budget"
    assert 0.1 < found[0.3][0] < 0.45 and found[0.3][1] < 0.8 * found[None][1]
    assert found[1e-9] == found[None], "a budget that is never met costs nothing"


def test_a_budget_resumes_exactly(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def sparse() -> ActivationSparsity:
        return ActivationSparsity(1.0, "net.*", loss_budget=1.6, monitor="task")

    whole, half, resumed, bare = (make_module(pl, optimizer="adamw") for _ in range(4))
    trainer(sparse(), max_epochs=4).fit(whole, loader())
    first = trainer(sparse(), max_epochs=2)
    # The factor's steps are shares of the whole fit: of this half too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("legibility.lightning_plugins.sparsity._activation_sparsity.total_steps", lambda trainer: 32)
        first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    trainer(sparse(), max_epochs=4).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    trainer(max_epochs=4).fit(bare, loader())
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert not torch.equal(weights_of(whole), weights_of(bare))


def test_nothing_is_left_behind(pl: Any, trainer: Callable[..., Any], module: Any) -> None:
    trainer(ActivationSparsity(0.1, "net.*")).fit(module, loader())
    assert "training_step" not in vars(module) and "manual_backward" not in vars(module)
    assert not any(part._forward_hooks for part in module.modules())
    module.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer(ActivationSparsity(0.1, "net.*")).fit(module, loader())
    assert not any(part._forward_hooks for part in module.modules())


def test_modules_that_do_not_run(pl: Any, trainer: Callable[..., Any], module: Any) -> None:
    module.idle = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="`taps`: idle did not run"):
        trainer(ActivationSparsity(0.1, ["net.1", "idle"])).fit(module, loader())
    with pytest.warns(UserWarning, match="`taps`: idle did not run with gradients in 10 training steps"):
        trainer(ActivationSparsity(0.1, "idle"), max_epochs=2).fit(module, loader())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strength": -1.0}, "`strength`"),
        ({"strength": float("nan")}, "`strength`"),
        ({"kind": "l2"}, "`kind`.*'l2'"),
        ({"kind": "top_k"}, "`k`"),
        ({"kind": "l1", "k": 3}, "`k`"),
        ({"kind": "top_k", "k": 0}, "`k`"),
        ({"loss_budget": 1.0}, "`loss_budget`.*`monitor`"),
        ({"monitor": "task"}, "`loss_budget`.*`monitor`"),
        ({"loss_budget": 0.0, "monitor": "task"}, "`loss_budget`"),
    ],
)
def test_bad_options(given: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"strength": 0.1, "taps": "net.1"} | given
    with pytest.raises(ValueError, match=message):
        ActivationSparsity(**settings)


def test_more_free_units_than_there_are(trainer: Callable[..., Any], module: Any) -> None:
    before = weights_of(module)
    with pytest.raises(ValueError, match="`k` must be from 1 to the number of units 64, got 65"):
        trainer(ActivationSparsity(0.1, "net.1", kind="top_k", k=65)).fit(module, loader())
    assert torch.equal(before, weights_of(module))
