"""torch.compile: taps fire, gradients are right, no graph more than without us and none again at each step."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from watched import Facts, Program, cross_entropy, fit, loader_of, make_plugin, rows

from legibility.lightning_plugins import InterpretabilityReport

BACKEND = "aot_eager"


@pytest.fixture
def pl() -> Any:
    """One namespace is enough here."""
    return pytest.importorskip("lightning.pytorch")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled by one test is seen by another."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    """An inner block that returns a tuple, as attention does, and an in-place operation after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(10, 24), Block(), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.block(self.first(x))
        return self.last(hidden.relu_())  # type: ignore[no-any-return]


class Block(nn.Module):
    """A linear layer and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.linear(x), None


def by_hand(net: Any, x: Tensor) -> Tensor:
    net = getattr(net, "_orig_mod", net)
    return net.last(net.block.linear(net.first(x)).relu())  # type: ignore[no-any-return]


def part(module: Any) -> Any:
    module.net.block.linear = torch.compile(module.net.block.linear, backend=BACKEND)
    return module


def wrapped(module: Any) -> Any:
    module.net = torch.compile(module.net, backend=BACKEND)
    return module


def in_place(module: Any) -> Any:
    module.net.compile(backend=BACKEND)
    return module


def whole(module: Any) -> Any:
    return torch.compile(module, backend=BACKEND)


def run_before(compiled: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def prepare(module: Any) -> Any:
        made = compiled(module)
        for _ in range(2):
            (made if compiled is whole else made.net)(rows()[0]).sum().backward()
        module.zero_grad()
        return made

    return prepare


PREPARED: dict[str, Callable[[Any], Any]] = {"part": part, "wrapped": wrapped, "in place": in_place, "whole": whole}
PREPARED |= {f"{name}, run before": run_before(p) for name, p in PREPARED.items()}


def program(**options: Any) -> Program:
    return Program(
        net=Net,
        task=lambda net, b: cross_entropy(net(b[0]), b[1]),
        facts=lambda net, b: Facts(b[0], by_hand(net, b[0])),
        options={"taps": ["net.first", "net.block", "net.block.linear"], **options},
    )


@pytest.mark.parametrize("how", PREPARED)
def test_gradients_and_taps_of_compiled_models(pl: Any, trainer: Callable[..., Any], how: str) -> None:
    plugin = fit(pl, trainer, program(), prepare=PREPARED[how])
    assert plugin.built is not None
    assert list(plugin.built.plan.signature.taps) == ["net.first", "net.block", "net.block.linear"], (
        "names without wrappers"
    )


def module_of(pl: Any, net: nn.Module) -> Any:
    class Classifier(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Classifier()


class Counted:
    """Graphs and graph breaks since the last time."""

    def __call__(self) -> tuple[int, int]:
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.mark.skipif(torch.__version__ < "2.7", reason="before torch 2.7, dynamo breaks the graph at a tap's tuple")
@pytest.mark.parametrize("how", ["part", "wrapped", "in place", "whole"])
def test_no_graph_break_and_no_recompilation(pl: Any, trainer: Callable[..., Any], how: str) -> None:
    found: dict[str, list[tuple[int, int]]] = {}
    for name in ("bare", "watched"):
        torch._dynamo.reset()
        counters.clear()
        seen = found[name] = []

        class Counts(pl.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, *args: Any, seen: Any = seen) -> None:
                seen.append(Counted()())

        plugins = [make_plugin(taps=["net.first", "net.block"])] if name == "watched" else []
        trainer([*plugins, Counts()]).fit(PREPARED[how](module_of(pl, Net())), loader_of(program(), 5))
    assert found["watched"][-1] == found["watched"][0], "nothing is compiled after the first step"
    assert found["watched"][-1] == found["bare"][-1], "as many graphs and breaks as without the callback"


def test_two_fits_of_one_compiled_model(pl: Any, trainer: Callable[..., Any]) -> None:
    module = wrapped(module_of(pl, Net()))
    for _ in range(2):
        plugin = make_plugin(taps="net.block.linear")
        trainer(plugin).fit(module, loader_of(program(), 2))
        assert plugin.built is not None and list(plugin.built.plan.signature.taps) == ["net.block.linear"]


@pytest.mark.parametrize("how", ["wrapped", "in place", "whole"])
def test_the_report_of_a_compiled_model(pl: Any, trainer: Callable[..., Any], how: str) -> None:
    report = InterpretabilityReport(
        queries=48,
        taps="net.block.linear",
        passes=1,
        progress=False,
        budget_seconds=float("inf"),
        scores="canonical_gini",
    )
    data = loader_of(program(), 4)
    trainer(report, max_epochs=2).fit(PREPARED[how](module_of(pl, Net())), data, data)
    assert report.record is not None
    assert not any("failed" in note for note in report.record.notes), report.record.notes
    assert report._keeper.kept.split == "validation"
    assert any("net.block.linear" in guard for guard in report.record.guards)
