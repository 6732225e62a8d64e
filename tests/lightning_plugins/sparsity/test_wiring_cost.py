"""WiringCost: prices by hand, places that only get better, a swap that changes no output, carried moments, resume."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, net, weights_of
from torch import nn

from legibility.lightning_plugins import L1Sparsity, Schedule, WiringCost
from legibility.lightning_plugins.sparsity._wiring import Wiring
from legibility.lightning_plugins.sparsity._wiring_picture import wiring_picture
from legibility.lightning_plugins.sparsity.structure._neurons import neurons
from legibility.losses import soft_threshold

STEPS = 8  # one epoch of `loader()`


def cost(wiring: Wiring, worth: dict[str, float]) -> float:
    """What all wires cost, from the definition."""
    return sum(worth[n] * float((w.weight.detach().abs() * wiring.prices(n)).sum()) for n, w in wiring.wires.items())


def test_prices_by_hand() -> None:
    wiring = Wiring(neurons(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))), nearest=0.1, slope=1.0)
    assert list(wiring.places) == ["inputs of 0", "0", "2"]
    # Places 1/4, 3/4 against 1/6, 1/2, 5/6: distances 1/12, 7/12; 1/4, 1/4; 7/12, 1/12
    distances = torch.tensor([[1 / 12, 7 / 12], [1 / 4, 1 / 4], [7 / 12, 1 / 12]])
    expected = (0.1 + distances) / (0.1 + distances).mean()
    torch.testing.assert_close(wiring.prices("0.weight"), expected)
    wiring.move("0", torch.tensor([1, 0, 2]))
    torch.testing.assert_close(wiring.prices("0.weight"), expected[[1, 0, 2]])
    torch.testing.assert_close(wiring.prices("2.weight"), expected[[1, 0, 2]].T)


def test_prices_of_a_flattened_convolution() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2))
    wiring = Wiring(neurons(model), nearest=0.1, slope=1.0)
    assert wiring.prices("0.weight").shape == (3, 1, 1, 1)
    prices = wiring.prices("3.weight").view(2, 3, 4)
    assert (prices == prices[:, :, :1]).all() and len(set(prices[0, :, 0].tolist())) == 3
    assert torch.equal(wiring.wires["3.weight"].loads(), model[3].weight.detach().abs().view(2, 3, 4).sum(2))


@pytest.mark.parametrize("seed", range(4))
def test_places_only_get_better_and_end_where_no_swap_helps(seed: int) -> None:
    torch.manual_seed(seed)
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3))
    wiring = Wiring(neurons(model), nearest=0.1, slope=1.0)
    worth = {"0.weight": 1.0, "2.weight": 0.5, "4.weight": 2.0}
    costs = [cost(wiring, worth)]
    while wiring.improve(worth):
        costs.append(cost(wiring, worth))
    assert len(costs) > 1 and all(after < before for before, after in itertools.pairwise(costs))
    for line, places in wiring.places.items():
        assert places.sort().values.tolist() == list(range(len(places)))
        for a, b in itertools.combinations(range(len(places)), 2):
            swapped = places.clone()
            swapped[[a, b]] = places[[b, a]]
            wiring.move(line, swapped)
            assert cost(wiring, worth) >= costs[-1] * (1 - 1e-4)
        wiring.move(line, places)


def test_a_permuted_network_is_untangled() -> None:
    """Straight wires, hidden units shuffled: the places must undo the shuffle."""
    torch.manual_seed(0)
    shuffle = torch.randperm(12)
    model: Any = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(12)[shuffle])
        model[2].weight.copy_(torch.eye(12)[:, shuffle])
    wiring = Wiring(neurons(model), nearest=0.1, slope=1.0)
    worth = {"0.weight": 1.0, "2.weight": 1.0}
    while wiring.improve(worth):
        pass
    for wires in wiring.wires.values():
        distance = (wiring.positions(wires.writes)[:, None] - wiring.positions(wires.reads)).abs()
        assert (distance * wires.loads()).sum() < 1e-5


@pytest.mark.parametrize("reweighted", [False, True])
def test_equals_a_loop_written_by_hand(pl: Any, trainer: Callable[..., Any], reweighted: bool) -> None:
    module = make_module(pl)
    wiring = WiringCost(1.0, swap_every=0, reweighted=reweighted, heal=0.25)
    trainer(wiring, max_epochs=2).fit(module, loader())
    torch.manual_seed(0)
    model = net()
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    sizes = [float(p.detach().square().mean().sqrt()) for p in matrices]
    levels = [0.1 if u < 0.25 or u >= 0.75 else 1.0 for u in (k / 12 for k in range(1, 13))]  # low, high, low
    done, frozen = 0, [torch.zeros(())] * 3
    for _ in range(2):
        for x, y in loader():
            step.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            step.step()
            with torch.no_grad():
                for i, (weight, size) in enumerate(zip(matrices, sizes, strict=True)):
                    if done >= 12:
                        weight[frozen[i]] = 0.0
                        continue
                    rows, columns = ((torch.arange(n) + 0.5) / n for n in weight.shape)
                    price = 0.1 + (rows[:, None] - columns).abs()
                    tau = size * levels[done] / sum(levels) * price / price.mean()
                    tau = tau * 0.1 * size / (weight.abs() + 0.1 * size) if reweighted else tau
                    weight.copy_(soft_threshold(weight, tau))
            done += 1
            frozen = [weight == 0 for weight in matrices] if done == 12 else frozen
    torch.testing.assert_close(weights_of(module.net), weights_of(model), rtol=1e-4, atol=1e-6)
    assert (weights_of(model) == 0).sum() > 50


def test_without_slope_and_swaps_it_is_l1(pl: Any, trainer: Callable[..., Any]) -> None:
    one, other = make_module(pl, optimizer="adamw"), make_module(pl, optimizer="adamw")
    trainer(WiringCost(2.0, slope=0.0, schedule=Schedule()), max_epochs=2).fit(one, loader())
    trainer(L1Sparsity(2.0), max_epochs=2).fit(other, loader())
    torch.testing.assert_close(weights_of(one), weights_of(other), rtol=1e-5, atol=1e-7)


def test_a_swap_changes_places_alone(pl: Any, trainer: Callable[..., Any]) -> None:
    """One swap after the last step: the same weights, bit for bit, as without, and other places."""
    with_swap, without = make_module(pl, optimizer="adamw"), make_module(pl, optimizer="adamw")
    swapping, still = WiringCost(1.0, swap_every=16, heal=0.0), WiringCost(1.0, swap_every=0, heal=0.0)
    trainer(swapping, max_epochs=2).fit(with_swap, loader())
    trainer(still, max_epochs=2).fit(without, loader())
    assert torch.equal(weights_of(with_swap), weights_of(without))
    assert swapping.wiring is not None and still.wiring is not None
    assert all(torch.equal(p, torch.arange(len(p))) for p in still.wiring.places.values())
    assert not any(torch.equal(p, torch.arange(len(p))) for p in swapping.wiring.places.values())


def test_arranged_neurons_train_on_as_their_twin(pl: Any, trainer: Callable[..., Any]) -> None:
    arranged, twin = make_module(pl, optimizer="adamw"), make_module(pl, optimizer="adamw")
    fits = []
    for module in (arranged, twin):
        wiring = WiringCost(1.0, swap_every=8)
        fits.append((trainer(wiring, max_epochs=2), wiring))
        fits[-1][0].fit(module, loader())
    (fit, wiring), (other, _) = fits
    assert wiring.wiring is not None
    orders = {name: wiring.wiring.places[name].argsort() for name in ("net.0", "net.2")}
    assert any((order != torch.arange(64)).any() for order in orders.values())
    x = torch.randn(20, 10)
    before = arranged.net(x)
    wiring.arrange(fit.optimizers)
    torch.testing.assert_close(arranged.net(x), before, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(wiring.wiring.places[name], torch.arange(64)) for name in orders)
    for _ in range(10):
        for module, optimizer in ((arranged, fit.optimizers[0]), (twin, other.optimizers[0])):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module.net(x), torch.arange(20) % 5).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    first, second = orders["net.0"], orders["net.2"]
    expected = [
        *(twin.net[0].weight[first], twin.net[0].bias[first]),
        *(twin.net[2].weight[second][:, first], twin.net[2].bias[second]),
        *(twin.net[4].weight[:, second], twin.net[4].bias),
    ]
    for ours, theirs in zip(arranged.net.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_equals_uninterrupted(pl: Any, trainer: Callable[..., Any], tmp_path: Path, stop: int) -> None:
    def wiring() -> WiringCost:
        return WiringCost(2.0, swap_every=3, heal=0.4, total_steps=4 * STEPS)

    whole, half, resumed = (make_module(pl, optimizer="adamw") for _ in range(3))
    reference, second = wiring(), wiring()
    trainer(reference, max_epochs=4).fit(whole, loader())
    first = trainer(wiring(), max_epochs=stop)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    trainer(second, max_epochs=4).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert reference.wiring is not None and second.wiring is not None
    for line, places in reference.wiring.places.items():
        assert torch.equal(places, second.wiring.places[line])
        assert (places != torch.arange(len(places))).any()


def test_strength_zero_is_no_callback(pl: Any, trainer: Callable[..., Any]) -> None:
    bare, with_callback = make_module(pl), make_module(pl)
    trainer().fit(bare, loader())
    trainer(WiringCost(0.0)).fit(with_callback, loader())
    assert torch.equal(weights_of(bare), weights_of(with_callback))


def test_wires_become_shorter(pl: Any, trainer: Callable[..., Any]) -> None:
    lengths = {}
    for swap_every in (0, 8):
        fit = trainer(WiringCost(4.0, swap_every=swap_every), max_epochs=6, log_every_n_steps=1)
        fit.fit(make_module(pl, optimizer="adamw"), loader())
        lengths[swap_every] = float(fit.callback_metrics["legibility/wiring/length"])
    assert lengths[8] < 0.9 * lengths[0] and fit.callback_metrics["legibility/wiring/zeros"] > 0.1


def test_residual_streams_are_refused(pl: Any, trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(10, 5), nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: Any) -> Any:
            x = self.a(x)
            return x + self.c(self.b(x).relu())

    module = make_module(pl)
    module.net = Residual()
    wiring = WiringCost(1.0)
    trainer(wiring).fit(module, loader())
    assert wiring.wiring is not None and list(wiring.wiring.wires) == ["net.b.weight", "net.c.weight"]
    assert "Outside of chains: net.a.weight (net.a: its output is used 2 times" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`targets`.*hold no two layers.*net.a: its output is used 2 times"):
        trainer(WiringCost(1.0, targets="net.a.*")).fit(module, loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swap_every": -1}, "`swap_every`.*-1"),
        ({"swap_every": 2.5}, "`swap_every`.*2.5"),
        ({"nearest": 0.0}, "`nearest`.*0"),
        ({"slope": -1.0}, "`slope`.*-1"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WiringCost(1.0, **options)


def test_the_picture_shows_each_weight_that_is_not_zero() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.masked_fill_(torch.rand(4, 3) > 0.5, 0.0)
        model[2].weight.masked_fill_(torch.rand(2, 4) > 0.5, 0.0)
    wiring = Wiring(neurons(model), nearest=0.1, slope=1.0)
    picture = wiring_picture(wiring, inputs=["x", "y", "z"], outputs=["a < b", "c"], title="test")
    weights = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()])
    assert picture.count("<line") == int((weights != 0).sum())
    assert picture.count("#2166ac") == int((weights > 0).sum())
    assert ">a &lt; b</text>" in picture and 'stroke-width="4.00"' in picture
    with pytest.raises(ValueError, match="`inputs`: 3 names expected, got 2"):
        wiring_picture(wiring, inputs=["x", "y"])
