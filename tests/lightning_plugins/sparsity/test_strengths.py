"""What a strength may be: a number, one for each pattern, a schedule, a goal; and what it acts on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, net, weights_of
from torch import nn

from legibility.lightning_plugins import GroupSparsity, L1Sparsity, Schedule, TopKSparsity, WiringCost
from legibility.lightning_plugins.sparsity.weights._weights import target_weights
from legibility.losses import soft_threshold

STEPS = 8  # one epoch of `loader()`


class Still(nn.Module):
    """Weights that the task leaves alone."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(40, 40, dtype=dtype) for _ in range(2))


def still(pl: Any, model: nn.Module, rate: float = 0.3) -> Any:
    """Trains a model whose gradients are zero, under a learning rate that falls."""

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(0.0 * p.float().sum() for p in self.model.parameters())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=rate)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Module()


def test_each_pattern_has_its_budget(pl: Any, trainer: Callable[..., Any]) -> None:
    module = still(pl, Still())
    before = [p.detach().clone() for p in (module.model.first.weight, module.model.second.weight)]
    sparse = L1Sparsity(
        {"model.first.*": 0.1, "*": 0.7}, reweighted=False, heal=0.0, follow_rate=False, schedule=Schedule.warm_up(0.5)
    )
    trainer(sparse, max_epochs=3).fit(module, loader())
    for weight, start, budget in zip((module.model.first, module.model.second), before, (0.1, 0.7), strict=True):
        # Without following the learning rate, the whole budget is spent.
        expected = soft_threshold(start, budget * float(start.square().mean().sqrt()))
        torch.testing.assert_close(weight.weight.detach(), expected, rtol=1e-4, atol=1e-6)
    assert sparse.strengths == {"l1": 0.7, "l1.model.first.*": 0.1, "l1.*": 0.7}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_lose_their_budget_too(pl: Any, trainer: Callable[..., Any], dtype: torch.dtype) -> None:
    module = still(pl, Still(dtype))
    start = module.model.first.weight.detach().clone()
    # Each of the 400 thresholds is far below half a unit in the last place.
    sparse = L1Sparsity(0.5, reweighted=False, heal=0.0, follow_rate=False)
    trainer(sparse, max_epochs=50).fit(module, loader())
    lost = (start - module.model.first.weight.detach()).abs().float().max() / start.float().square().mean().sqrt()
    assert 0.4 < lost < 0.55


HALVES: dict[str, Callable[[], Any]] = {
    "l1": lambda: L1Sparsity(6.0, heal=0.2, total_steps=80),
    "preconditioned": lambda: L1Sparsity(3.0, preconditioned=0.1, heal=0.2, total_steps=80),
    "group": lambda: GroupSparsity(3.0, groups="neurons", heal=0.2, total_steps=80),
    "wiring": lambda: WiringCost(6.0, heal=0.2, total_steps=80),
}


@pytest.mark.parametrize("which", HALVES)
def test_low_precision_weights_keep_their_zeros_against_the_task(
    pl: Any, trainer: Callable[..., Any], which: str
) -> None:
    """The optimizer moves zeros away at each step, and each step must bring them back."""
    shares = {}
    for precision in ("32-true", "bf16-true"):
        module, callback = make_module(pl, optimizer="adamw"), HALVES[which]()
        seen: list[float] = []

        class Look(pl.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, *args: Any, seen: list[float] = seen, callback: Any = callback) -> None:
                seen.append(float(callback.zero_share()))

        trainer([callback, Look()], max_epochs=10, precision=precision).fit(module, loader())
        shares[precision] = seen
    full, half = shares["32-true"], shares["bf16-true"]
    assert full[-1] > 0.1
    assert max(abs(a - b) for a, b in zip(full, half, strict=True)) < 0.1


@pytest.mark.parametrize("which", HALVES)
def test_low_precision_resumes_exactly(pl: Any, trainer: Callable[..., Any], tmp_path: Path, which: str) -> None:
    whole, half, resumed = (make_module(pl, optimizer="adamw") for _ in range(3))
    options = {"precision": "bf16-true"}
    trainer(HALVES[which](), max_epochs=4, **options).fit(whole, loader())
    first = trainer(HALVES[which](), max_epochs=2, **options)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(HALVES[which](), max_epochs=4, **options).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))


class Normed(nn.Module):
    """Scale is of no account to what a norm follows: groups shrink alike, and die together."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(10, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()),
            *(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5)),
        )

    def forward(self, x: Any) -> Any:
        return self.layers(x)


@pytest.mark.parametrize("goal", [0.5, 0.8])
def test_a_goal_for_groups_is_never_passed(pl: Any, trainer: Callable[..., Any], goal: float) -> None:
    module = make_module(pl, optimizer="adamw")
    torch.manual_seed(0)
    module.net = Normed()
    sparse = GroupSparsity(sparsity=goal, exclude="net.layers.6.*")
    fit = trainer(sparse, max_epochs=40, log_every_n_steps=1)
    fit.fit(module, loader(shuffle=True))
    assert goal - 0.1 < fit.callback_metrics["legibility/group/dead"] <= goal + 1 / 64
    for index in (0, 3):
        assert (module.net.layers[index].weight != 0).any()


def test_a_goal_that_is_missed_is_said(pl: Any, trainer: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match=r"`sparsity` = 0.9 was asked for, 0\.\d+ was reached after 8 of 80 steps"):
        trainer(L1Sparsity(sparsity=0.9, total_steps=80)).fit(make_module(pl), loader())


def test_a_weight_that_died_is_said_once(pl: Any, trainer: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match=r"all of net\.0\.weight, net\.2\.weight, net\.4\.weight is zero now") as seen:
        trainer(L1Sparsity(1000.0), max_epochs=3, log_every_n_steps=1).fit(make_module(pl), loader())
    assert sum("is zero now" in str(one.message) for one in seen) == 1


def test_a_loss_that_nobody_logs_is_said(pl: Any, trainer: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match=r"`monitor` = 'taks' was not logged in this epoch.*Logged were: .*task"):
        trainer(L1Sparsity(loss_budget=0.3, monitor="taks")).fit(make_module(pl), loader())


def test_weights_that_no_optimizer_steps_are_named_and_not_counted(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    module.configure_optimizers = lambda: torch.optim.AdamW(module.net[4].parameters(), lr=1e-2)
    before = module.net[0].weight.detach().clone()
    fit = trainer(L1Sparsity(sparsity=0.5), max_epochs=50, log_every_n_steps=1)
    with pytest.warns(UserWarning, match=r"no optimizer steps net\.0\.weight, net\.2\.weight\. They stay as they are"):
        fit.fit(module, loader())
    assert torch.equal(module.net[0].weight, before)
    share = float((module.net[4].weight == 0).float().mean())
    assert abs(share - 0.5) < 0.05 and abs(float(fit.callback_metrics["legibility/l1/zeros"]) - share) < 0.05


class Tokens(nn.Module):
    """A vision transformer's parameters that are no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(3, 4))
        self.latents, self.mixer = nn.Parameter(torch.ones(1, 7, 4)), nn.Parameter(torch.ones(4, 4))
        self.experts, self.layer = nn.Parameter(torch.ones(2, 4, 4)), nn.Conv1d(4, 1, 3)


def test_what_is_added_to_each_example_is_no_matrix() -> None:
    assert set(target_weights(Tokens(), "*", ())) == {"mixer", "experts", "layer.weight"}
    assert set(target_weights(Tokens(), ["pos_embed", "layer.*"], ())) == {"pos_embed", "layer.weight"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1Sparsity({}), "`strength` is an empty mapping"),
        (lambda: L1Sparsity(1.0, total_steps=0), "`total_steps` .* got 0"),
        (lambda: L1Sparsity(1.0, schedule="cubic"), "`schedule` must be a Schedule.*'cubic'"),  # type: ignore[arg-type]
        (lambda: TopKSparsity(0.5, minimum_per_row=1.5), "`minimum_per_row` .* got 1.5"),  # type: ignore[arg-type]
        (lambda: target_weights(Tokens(), [], ()), "`targets` is empty"),
    ],
)
def test_what_is_no_strength_is_said_at_once(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("goal", [0.5, 0.9])
def test_a_goal_of_zeros_is_reached(pl: Any, trainer: Callable[..., Any], goal: float) -> None:
    module = make_module(pl, optimizer="adamw")
    sparse = L1Sparsity(sparsity=goal)
    fit = trainer(sparse, max_epochs=50, log_every_n_steps=1)
    fit.fit(module, loader(shuffle=True))
    zeros = torch.cat([p.detach().flatten() == 0 for p in module.net.parameters() if p.ndim == 2]).float().mean()
    assert abs(float(zeros) - goal) < 0.03
    assert fit.callback_metrics["legibility/l1/factor"] > 1


def test_a_budget_of_loss_is_spent_and_kept(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl, optimizer="adamw")
    fit = trainer(L1Sparsity(loss_budget=0.3, monitor="task", heal=0.0), max_epochs=80)
    fit.fit(module, loader(shuffle=True))
    bare = make_module(pl, optimizer="adamw")
    trainer(max_epochs=80).fit(bare, loader(shuffle=True))
    with torch.no_grad():
        (x, y) = loader(batch_size=64).dataset[:]
        ours, theirs = (float(nn.functional.cross_entropy(m.net(x), y)) for m in (module, bare))
    assert theirs < 0.05, "the task alone would go far below the budget"
    assert 0.1 < ours < 0.45
    assert (weights_of(module.net) == 0).float().mean() > 0.5


def test_a_goal_resumes_exactly(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def sparse() -> L1Sparsity:
        return L1Sparsity(sparsity=0.7, total_steps=4 * STEPS)

    whole, half, resumed = (make_module(pl, optimizer="adamw") for _ in range(3))
    trainer(sparse(), max_epochs=4).fit(whole, loader())
    first = trainer(sparse(), max_epochs=2)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    trainer(sparse(), max_epochs=4).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))


def test_a_second_fit_starts_anew(pl: Any, trainer: Callable[..., Any]) -> None:
    callback = L1Sparsity(sparsity=0.9)
    found = []
    for _ in range(2):
        module = make_module(pl, optimizer="adamw")
        trainer(callback, max_epochs=2).fit(module, loader())
        found.append(weights_of(module))
    assert torch.equal(*found)


def test_preconditioning_equals_its_formula(pl: Any, trainer: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    sizes = [float(p.detach().square().mean().sqrt()) for p in matrices]
    for x, y in loader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for weight, size in zip(matrices, sizes, strict=True):
            d = optimizer.state[weight]["exp_avg_sq"].sqrt()
            tau = 2.0 * size / STEPS * d.mean() / torch.maximum(d, 0.1 * d.mean())
            with torch.no_grad():
                weight.copy_(weight.sign() * (weight.abs() - tau).clamp(min=0))
    module = make_module(pl, optimizer="adamw")
    trainer(L1Sparsity(2.0, reweighted=False, heal=0.0, preconditioned=0.1)).fit(module, loader())
    torch.testing.assert_close(weights_of(module.net), weights_of(model), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="`preconditioned` needs the second moments.*SGD"):
        trainer(L1Sparsity(2.0, preconditioned=0.1)).fit(make_module(pl), loader())


@pytest.mark.parametrize("sparse_gradients", [False, True])
def test_rows_that_no_batch_asked_for_stay(pl: Any, trainer: Callable[..., Any], sparse_gradients: bool) -> None:
    class Words(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(20, 6, sparse=sparse_gradients)
            self.head = nn.Linear(6, 5)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self.head(self.embedding(batch[1])), batch[1])  # ids 0 to 4

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Words()
    before = module.embedding.weight.detach().clone()
    trainer(L1Sparsity(1.0, targets="embedding.weight"), max_epochs=2).fit(module, loader())
    assert torch.equal(module.embedding.weight[5:], before[5:])
    assert (module.embedding.weight[:5] == 0).any()


def test_adapters_are_refused_by_name_or_named_in_full() -> None:
    model = nn.ModuleDict({"lora_A": nn.Linear(8, 2, bias=False), "base": nn.Linear(8, 8).requires_grad_(False)})
    with pytest.raises(ValueError, match=r"`targets`.*no weight.*lora_A\.weight are taken if named in full"):
        target_weights(model, "*", ())
    assert list(target_weights(model, "lora_A.weight", ())) == ["lora_A.weight"]


def test_targets_that_nobody_steps(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    module.configure_optimizers = lambda: torch.optim.SGD(module.net[4].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="`targets`: no optimizer steps any of net.0.weight"):
        trainer(L1Sparsity(1.0, targets="net.0.*")).fit(module, loader())


def test_averaged_weights_are_sparse_too(pl: Any, trainer: Callable[..., Any]) -> None:
    average = getattr(pytest.importorskip(f"{pl.__name__}.callbacks"), "EMAWeightAveraging", None)
    if average is None:
        pytest.skip("this Lightning has no EMAWeightAveraging")
    seen: list[float] = []

    for first in (True, False):
        module = make_module(pl, optimizer="adamw")

        def watch(batch: Any, batch_idx: int, module: Any = module) -> None:
            zeros = [p.detach().flatten() == 0 for p in module.net.parameters() if p.ndim == 2]
            seen.append(float(torch.cat(zeros).float().mean()))

        module.validation_step = watch
        ours, theirs = TopKSparsity(0.8, heal=0.4), average(decay=0.9)
        fit = trainer([ours, theirs] if first else [theirs, ours], max_epochs=10, num_sanity_val_steps=0)
        fit.fit(module, loader(), loader())
        assert seen[-1] == pytest.approx(0.8, abs=0.01), "in the last evaluation, on the average"
        zeros = [p.detach().flatten() == 0 for p in module.net.parameters() if p.ndim == 2]
        assert float(torch.cat(zeros).float().mean()) == pytest.approx(0.8, abs=0.01), "after the fit"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`strength` is missing"),
        ({"sparsity": 1.0}, "`sparsity`"),
        ({"sparsity": 0.5, "loss_budget": 1.0}, "two goals"),
        ({"sparsity": 0.5, "monitor": "x"}, "`monitor` belongs"),
        ({"loss_budget": 1.0}, "`monitor` is missing"),
        ({"loss_budget": 0.0, "monitor": "x"}, "`loss_budget`"),
        ({"strength": 1.0, "monitor": "x"}, "`monitor`"),
        ({"strength": {"a": 1.0}, "targets": "b"}, "`targets`"),
        ({"strength": {"a": -1.0}}, "`strength`"),
        ({"strength": 1.0, "preconditioned": 0.0}, "`preconditioned`"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        L1Sparsity(**options)
