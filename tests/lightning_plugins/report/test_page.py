"""The page that the report writes: pictures of models of which the truth is known, and never at the record's cost."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from legibility.lightning_plugins import InterpretabilityReport, ModelPage
from legibility.lightning_plugins.report.picture._grids import coarse, example_picture
from legibility.lightning_plugins.report.picture._structure import weight_pictures
from legibility.lightning_plugins.report.picture._students import student_pictures
from legibility.lightning_plugins.report.picture._units import _explained
from legibility.scores import FamilyImitation, Queries
from legibility.students import LinearStudent
from legibility.tradeoff.model_page import load_picture


def report(folder: Path, **options: Any) -> InterpretabilityReport:
    defaults = {
        "folder": str(folder), "queries": 128, "passes": 1, "progress": False, "random_init_control": False,
        "held_out": [LinearStudent()], "scores": "canonical_gini", "page": ModelPage(),
    }  # fmt: skip
    return InterpretabilityReport(**{**defaults, **options})


def test_the_page_and_its_numbers_lie_beside_the_record(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    plugin = report(tmp_path, page=ModelPage(answers=["<b>zero</b>", "one", "two", "three", "four"]))
    trainer(plugin, max_epochs=4).fit(make_module(pl, optimizer="adamw"), loader(128), loader(128))
    assert plugin.page_path == tmp_path / "model.html"
    picture = load_picture(tmp_path / "picture.json.gz")
    assert picture.model == "Sequential" and [one.layer for one in picture.units] == ["1", "3"]
    assert [one.name for one in picture.weights] == ["0.weight", "2.weight", "4.weight"]
    assert picture.graph is not None and picture.graph.layers == ["inputs", "0", "2", "4"]
    assert [one.family for one in picture.students] == ["linear"]
    assert set(picture.missing) == {"lens", "circuit", "attention"}
    page = (tmp_path / "model.html").read_text()
    assert "&lt;b&gt;zero&lt;/b&gt;" in page and "<b>zero" not in page
    assert len(page) < 500_000


def test_no_page_is_written_if_none_is_wanted(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    plugin = report(tmp_path, page=False)
    trainer(plugin).fit(make_module(pl), loader(64), loader(64))
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"] and plugin.page_path is None


@pytest.mark.parametrize("what", ["picture", "page"])
def test_what_fails_costs_no_record(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from legibility.lightning_plugins.report import _page_files
    from legibility.lightning_plugins.report.picture import _collect

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of ink")

    module = _collect if what == "picture" else _page_files
    monkeypatch.setattr(module, "units_pictures" if what == "picture" else "write_model_html", broken)
    plugin = report(tmp_path)
    fit = trainer(plugin)
    if what == "page":
        with pytest.warns(UserWarning, match="page failed: RuntimeError: out of ink"):
            fit.fit(make_module(pl), loader(64), loader(64))
        assert plugin.page_path is None
    else:
        fit.fit(make_module(pl), loader(64), loader(64))
        assert load_picture(tmp_path / "picture.json.gz").missing["units"] == "RuntimeError: out of ink"
    assert plugin.record is not None and plugin.record.scores and (tmp_path / "record.json").is_file()


def test_the_circuit_of_two_blocks_is_the_block_that_is_read(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """Two independent blocks of 4 units; the head reads the first. Its picture shows just that block."""
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        block = torch.randn(4, 4, generator=draw) * 2
        first, last = net[0].get_parameter("weight"), net[2].get_parameter("weight")
        first.zero_()
        first[:4, :4], first[4:, 4:] = block, torch.randn(4, 4, generator=draw) * 2
        last.zero_()
        last[:, :4] = torch.randn(2, 4, generator=draw) * 3
    x = torch.randn(256, 8, generator=draw)
    with torch.no_grad():  # both answers equally often
        said = net(x)
        net[2].get_parameter("bias")[0] -= (said[:, 0] - said[:, 1]).median()
    data = DataLoader(TensorDataset(x, net(x).argmax(1)), 64)

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    plugin = report(tmp_path, scores="circuit_nodes", budget_seconds=math.inf, queries=256)
    trainer(plugin).fit(Module(), data, data)
    picture = load_picture(tmp_path / "picture.json.gz")
    (circuit,) = picture.circuits
    kept = {layer.layer: layer.grid[0] for layer in circuit.layers}
    assert circuit.granularity == "nodes" and set(kept) == {"0", "2"}
    for grid in kept.values():
        assert grid[4:] == [0, 0, 0, 0], "nothing of the block that is not read"
        assert sum(value == 99 for value in grid[:4]) >= 2
    # Weights and graph: the other block has no way to the output.
    assert picture.graph is not None
    columns = {(node[0], node[1]) for node in picture.graph.nodes}
    assert not {(1, unit) for unit in range(4, 8)} & columns, "dead ends are dropped from the canonical weights"


def test_units_of_known_answers_are_told() -> None:
    answers = torch.arange(400) % 4
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    scaled = torch.stack([(answers == 2).double(), noise, torch.zeros(400).double()], 1)
    scaled = (scaled - scaled.mean(0)) / scaled.std(0, correction=0).clamp(min=1e-9)
    indicator = nn.functional.one_hot(answers, 4).double()
    counts = indicator.sum(0)
    found = _explained(scaled, (indicator.T @ scaled) / counts.unsqueeze(1), counts)
    assert found[0] == pytest.approx(1.0) and found[1] < 0.05 and found[2] == 0.0


def test_students_are_shown_where_they_come_closest_and_where_they_are_farthest() -> None:
    logits = torch.zeros(64, 3)
    logits[:, 1] = 5.0
    nats = torch.linspace(0.0, 3.1, 32)
    family = FamilyImitation("linear", 32, 64, kl=1.55, by_position=nats, decided=(nats > 2).long())
    queries = Queries(torch.randn(64, 6), logits, torch.ones(64, dtype=torch.long))
    (picture,), examples = student_pictures(queries, {"linear": family}, ModelPage(answers=["a", "b", "c"]))
    assert [round(one.nats[0] or 0.0, 1) for one in picture.learnt] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [round(one.nats[0] or 0.0, 1) for one in picture.missed][:2] == [3.1, 3.0]
    assert picture.missed[0].model == ["b"] and picture.missed[0].student == ["b"]
    assert picture.learnt[0].student == ["a"] and picture.agreement == pytest.approx(11 / 32)
    assert picture.by_answer == [["b", "32", "1.55"]] and picture.spread[0] == 0.0 and len(picture.spread) == 11
    assert examples[picture.missed[0].example].title == "example 63, truly b"


def test_positions_that_do_not_count_are_not_shown_as_missed() -> None:
    logits = torch.randn(64, 5, 7)
    nats = torch.full((32, 5), math.nan)
    nats[:, :3] = torch.rand(32, 3)
    nats[7] = math.nan  # nothing of it counts
    family = FamilyImitation("lstm", 32, 64, by_position=nats, decided=logits[32:].argmax(-1))
    queries = Queries(torch.randint(7, (64, 5)), logits)
    (picture,), examples = student_pictures(queries, {"lstm": family}, ModelPage(decode=lambda token: "abcdefg"[token]))
    shown = [*picture.learnt, *picture.missed]
    assert all(one.nats[3:] == [None, None] for one in shown)
    assert "example 39" not in {examples[one.example].title for one in shown}
    assert picture.kl is None and picture.agreement == 1.0 and all(len(w) == 1 for e in examples for w in e.words)


def test_a_decoder_that_fails_leaves_the_number() -> None:
    page = ModelPage(decode=lambda token: {1: "one"}[token])
    assert example_picture(torch.tensor([1, 2]), "", page).words == ["one", "2"]
    assert example_picture(torch.arange(6.0), "", ModelPage(shape=(2, 3))).grid == [[0, 20, 40], [59, 79, 99]]
    assert example_picture(torch.arange(6.0), "", ModelPage(shape=(5, 5))).grid == [[0, 20, 40, 59, 79, 99]]
    wrong: list[dict[str, Any]] = [{"shape": (3,)}, {"units": 0}, {"examples": 0}]
    for options in wrong:
        with pytest.raises(ValueError, match="`page`"):
            ModelPage(**options)


def test_weights_are_counted_with_their_exact_zeros() -> None:
    class Subject:
        primary = nn.Sequential(nn.Linear(100, 80))

    with torch.no_grad():
        weight = Subject.primary[0].get_parameter("weight")
        weight.zero_()
        weight[0, 0], weight[79, 99] = -2.0, 1.0
    (one,) = weight_pictures(Subject())  # type: ignore[arg-type]
    assert one.zeros == pytest.approx(1 - 2 / 8000) and one.largest == 2.0
    assert one.counts[0] == 1 and sum(one.counts) == 2 and one.counts[30] == 1  # -2 first, 1 three quarters along
    assert len(one.grid) == len(one.grid[0]) == 64 and one.grid[0][0] == -99 and one.grid[63][63] == 50
    assert coarse(torch.zeros(3, 200), 64).shape == (3, 64)
