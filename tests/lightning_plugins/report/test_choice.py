"""What the report measures beside the held-out students: what applies, with controls and reasons, within its budget."""

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import loader, make_module, validation_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from legibility.lightning_plugins import InterpretabilityReport, L1Sparsity
from legibility.lightning_plugins.report.choice._applicable import Applicable
from legibility.lightning_plugins.report.choice._budget import Budget, Spent
from legibility.lightning_plugins.report.choice._layers import activations, head_of, layers_of
from legibility.lightning_plugins.report.choice._within_budget import _entry
from legibility.scores import UNLEARNT, FitSeconds, Material, Measured, Reading, Score
from legibility.students import LinearStudent
from legibility.tradeoff import RunRecord, load_record

CHEAP = ["canonical_gini", "participation_ratio", "activation_l0", "lens_gap", "explanation_error", "selectivity"]
# Of tests that measure for seconds: the scores don't see which namespace trained.
ONE = pytest.mark.parametrize("pl", ["pytorch_lightning"], indirect=True)


def report(folder: Path, **options: Any) -> InterpretabilityReport:
    defaults = {
        "folder": str(folder), "queries": 128, "passes": 1, "progress": False, "random_init_control": False,
        "held_out": [LinearStudent()], "budget_seconds": math.inf, "page": False, "scores": CHEAP,
    }  # fmt: skip
    return InterpretabilityReport(**{**defaults, **options})


def entry(record: RunRecord | None, name: str) -> Any:
    assert record is not None
    (found,) = [entry for entry in record.scores if entry.name == name and entry.family is None]
    return found


class Tokens(nn.Module):
    """A stream of three blocks, a norm and a head; it takes what models of Hugging Face take, and returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        states = self.embed(input_ids)
        for block in self.blocks:
            states = block(states, src_key_padding_mask=~attention_mask.bool())
        logits = self.head(self.norm(states))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits, "past": None}


class Padded(Dataset[dict[str, Tensor]]):
    """Rows of 4 to 8 tokens; the label is the next number."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        mask = (torch.arange(8) < torch.randint(4, 9, (128, 1), generator=draw)).long()
        ids = torch.randint(1, 11, (128, 8), generator=draw) * mask
        self.rows = {"input_ids": ids, "attention_mask": mask}
        self.rows["labels"] = torch.where(mask.bool(), (ids + 1) % 11, -100)

    def __len__(self) -> int:
        return 128

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.rows.items()}


def in_module(pl: Any, net: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> Any:
    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return loss(self.net, batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss(self.net, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    return Module()


def test_a_classifier_gets_values_beside_controls_and_reasons(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    plugin = report(tmp_path)
    trainer([L1Sparsity(5.0), plugin], max_epochs=4).fit(make_module(pl, optimizer="adamw"), loader(128), loader(128))
    record = load_record(tmp_path / "record.json")
    further = [one for one in record.scores if one.name in CHEAP]
    assert [one.name for one in further if one.value is None] == ["selectivity", "lens_gap"]
    assert "concepts=" in entry(record, "selectivity").reason
    assert "no residual stream" in entry(record, "lens_gap").reason
    gini = entry(record, "canonical_gini")
    assert gini.control_name == "random-init" and gini.controls["random-init"] == gini.control
    assert gini.controls["temperature 4"] == gini.value and gini.beaten_by == ()
    assert "needs the model" in gini.control_reasons["permuted answers"]
    assert gini.trained_on and not entry(record, "participation_ratio").trained_on
    assert 1 < entry(record, "participation_ratio").value < 64
    for one in further:
        assert (one.value is None) == (one.reason is not None), one.name


def test_dictionaries_with_masks_are_asked_example_by_example(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    module = in_module(pl, Tokens(), lambda net, batch: net(**batch)["loss"])
    plugin = report(tmp_path)
    batches = DataLoader(Padded(), 32)
    trainer(plugin, max_epochs=8).fit(module, batches, batches)
    gap = entry(plugin.record, "lens_gap")
    assert gap.value is not None and set(gap.details) >= {"information", "logit_kl/blocks.0", "tuned_kl/blocks.1"}
    assert gap.details["tuned_kl/blocks.1"] < gap.details["information"]
    assert "more than one tensor" in entry(plugin.record, "explanation_error").reason


@ONE
def test_a_regression_has_reasons_where_a_distribution_is_needed(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
    module = in_module(pl, net, lambda net, batch: (net(batch[0])[:, 0] - batch[0].sum(1)).square().mean())
    plugin = report(tmp_path, scores=[*CHEAP, "circuit_*", "compressed_size", "tree_path_length", "median_saving"])
    trainer(plugin, max_epochs=3).fit(module, loader(128), loader(128))
    for name in ("circuit_nodes", "circuit_edges", "compressed_size", "lens_gap", "explanation_error"):
        assert entry(plugin.record, name).reason == "the output is no distribution over classes"
    assert entry(plugin.record, "canonical_gini").value is not None
    # Its values are cut into decisions, which a tree can learn or not; either way there is an answer.
    assert entry(plugin.record, "tree_path_length").reason != "the output is no distribution over classes"
    saving = entry(plugin.record, "median_saving")
    assert saving.value is not None and saving.value > saving.controls["permuted answers"]


def test_images_are_asked_as_images(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0].repeat(1, 7)[:, :64].view(-1, 1, 8, 8)), batch[1])

    plugin = report(tmp_path)
    trainer(plugin, max_epochs=8).fit(in_module(pl, net, loss), loader(128), loader(128))
    dimension = entry(plugin.record, "participation_ratio")
    assert 1 < dimension.value < dimension.details["live_units"] <= 6 * 36
    assert entry(plugin.record, "explanation_error").value is not None


@ONE
def test_nothing_is_said_for_a_constant_model(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    module = make_module(pl)
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.zero_()
    plugin = report(tmp_path, scores="*")
    plugin.measure(trainer(plugin), module, validation_data(pl, 128))
    record = load_record(tmp_path / "record.json")
    names = {one.name for one in record.scores}
    assert {"median_saving", "circuit_nodes", "compressed_size", "relative_modularity", "patch_through"} <= names
    praised = [one.name for one in record.scores if one.direction is not None and one.value is not None]
    # Zeros are zeros, and say so; nothing else has a value.
    assert set(praised) <= {"exact_zero_share", "active_weight_share", "sparse_bytes_share", "sparse_flops_share"}


@pytest.mark.parametrize("where", ["score", "control"])
def test_a_score_that_fails_is_a_reason(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from legibility.lightning_plugins.report.choice import _applicable

    def broken(material: Material) -> Reading:
        if where == "score" or material.model is None:
            raise RuntimeError("somebody's kernel")
        return Reading(1.0)

    def made() -> list[Score]:
        return [Score("mine", "share", "higher", broken), Score("other", "share", "higher", lambda m: Reading(2.0))]

    monkeypatch.setattr(_applicable, "structure_scores", made)
    plugin = report(tmp_path)
    plugin.scores = ["mine", "other"]
    trainer(plugin).fit(make_module(pl), loader(64), loader(64))
    mine = entry(plugin.record, "mine")
    assert entry(plugin.record, "other").value == 2.0
    said = mine.reason if where == "score" else mine.control_reasons["permuted answers"]
    assert said == "does not apply: RuntimeError: somebody's kernel"
    assert (mine.value is None) == (where == "score")


def test_the_budget_is_a_share_of_the_fit_or_seconds() -> None:
    budget = Budget(0.15)
    assert budget.left(100.0, 5.0) == pytest.approx(10.0) and budget.left(100.0, 60.0) == pytest.approx(2.0)
    assert budget.left(None, 0.0) == 0.0 and "budget_seconds" in budget.reason(None)
    assert Budget(0.0).left(100.0, 0.0) == 0.0 and Budget(0.01).left(100.0, 99.0) == pytest.approx(1.0)
    assert Budget(0.15, 30.0).left(None, 10.0) == 20.0 and Budget(0.15, math.inf).left(1.0, 9.0) == math.inf
    with pytest.raises(ValueError, match="`budget`.*-1"):
        InterpretabilityReport(budget=-1)
    with pytest.raises(ValueError, match="`budget_seconds`.*-2"):
        InterpretabilityReport(budget_seconds=-2)


def test_time_for_students_is_what_the_page_and_a_margin_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 102.0)
    assert Spent(Budget(0.15), 100.0, 100.0, page=False).for_students() == pytest.approx(15.0 - 2.0 - 3.0)
    assert Spent(Budget(0.15), 100.0, 100.0, page=True).for_students() == pytest.approx(15.0 - 2.0 - 3.0 - 3.0)
    assert Spent(Budget(0.15), 20.0, 100.0, page=True).left() == pytest.approx(0.4)  # 2 % in any case
    assert Spent(Budget(0.15), 20.0, 100.0, page=True).for_students() == 0.0
    assert Spent(Budget(0.0), 100.0, 100.0, page=False).for_students() == 0.0
    for unlimited in (Budget(0.15, math.inf), Budget(0.15)):
        assert Spent(unlimited, None, 100.0, page=True).for_students() == math.inf


@pytest.mark.parametrize("control", [False, True])
def test_students_that_nobody_named_are_fitted_whole_if_the_estimate_fits_in(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: bool
) -> None:
    """Two seconds for the model, one for the labels, two for three students' taps; 3.3 more for the untrained model."""
    from legibility.lightning_plugins.report import _imitation_scores as scores
    from legibility.lightning_plugins.report import _measurement

    ticks = itertools.count(0.0, 4 / 3)  # asking the model takes one
    monkeypatch.setattr(_measurement, "time", SimpleNamespace(perf_counter=ticks.__next__))
    monkeypatch.setattr(scores, "held_out_seconds", lambda *args, **options: FitSeconds(2.0, 1.0))
    needed = 3.0 + 2.0 + (2.0 + 4 / 3 if control else 0.0)
    found = {}
    for name, seconds in {"in": needed + 0.01, "out": needed - 0.01, "named": needed - 0.01}.items():
        monkeypatch.setattr(Spent, "for_students", lambda self, seconds=seconds: seconds)
        held_out: Any = [LinearStudent()] if name == "named" else "auto"
        plugin = report(
            tmp_path / name, held_out=held_out, random_init_control=control, budget_seconds=9.0, taps="net.1"
        )
        trainer(plugin, max_epochs=1).fit(make_module(pl), loader(128), loader(128))
        found[name] = plugin.record
    fitted = found["in"]
    assert fitted is not None
    by_students = {one.name for one in fitted.scores if one.family is not None}
    assert by_students >= {"held_out_kl", "adjusted_saving", "fvu/net.1", "patch_through_kl/net.1", "patch_through_kl"}
    for score in by_students:
        assert entry(found["in"], score).value is not None and entry(found["named"], score).value is not None
        assert entry(found["out"], score).value is None
        assert entry(found["out"], score).reason.startswith(f"fitting students would take about {needed:.2g} s")
    assert "held_out=" in entry(found["out"], "held_out_kl").reason
    assert (entry(found["in"], "held_out_kl").control is not None) == control
    assert entry(found["out"], "canonical_gini").value is not None, "the rest is measured"


def test_what_the_budget_leaves_out_says_so_and_named_students_are_not_cut_short(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for name, options in {"none": {"budget_seconds": 0.0}, "little": {"budget_seconds": 1e-9}, "all": {}}.items():
        plugin = report(tmp_path / name, progress=True, scores=["canonical_gini", "tree_path_length"], **options)
        torch.manual_seed(0)
        trainer(plugin, max_epochs=1).fit(make_module(pl), loader(128), loader(128))
        found[name] = plugin.record
    printed = " ".join(capsys.readouterr().out.split())
    assert "Estimated, in seconds with controls: canonical_gini" in printed
    assert "% of the fit" in printed and "InterpretabilityReport took" in printed
    assert entry(found["none"], "canonical_gini").reason == "not asked for: the budget is 0"
    assert entry(found["little"], "canonical_gini").reason == "no time is left of the budget"
    assert entry(found["all"], "canonical_gini").value is not None
    for name in ("held_out_kl", "disagreement", "code_length"):
        values = {entry(record, name).value for record in found.values()}
        assert len(values) == 1, "the protocol and values of students that were named don't depend on the budget"
    cost = found["all"].cost if found["all"] is not None else None
    assert cost is not None and cost.report_seconds is not None and cost.fit_seconds is not None
    assert cost.report_share == pytest.approx(cost.report_seconds / cost.fit_seconds)


def test_concepts_come_from_the_batch(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    """Two units of the hidden layer are the two concepts."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (128, 2), generator=draw)
    x = signs.float() * 4 - 2 + 0.1 * torch.randn(128, 2, generator=draw)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 4))
    with torch.no_grad():
        net[0].get_parameter("weight").copy_(torch.eye(2))
        net[0].get_parameter("bias").zero_()
        # Class 2 a + b, from hidden units that are 2 where a concept is there and 0 where not.
        net[2].get_parameter("weight").copy_(3 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]))
        net[2].get_parameter("bias").copy_(torch.tensor([6.0, 0.0, 0.0, -6.0]))
    rows = [
        {"x": x[i : i + 32], "kinds": signs[i : i + 32], "y": signs[i : i + 32] @ torch.tensor([2, 1])}
        for i in (0, 32, 64, 96)
    ]
    module = in_module(pl, net, lambda net, batch: nn.functional.cross_entropy(net(batch["x"]), batch["y"]))
    data: Any = DataLoader(rows, batch_size=None)  # type: ignore[arg-type]
    plugin = report(tmp_path, concepts="kinds", scores=["selectivity", "used_given_encoded"])
    trainer(plugin, max_epochs=1).fit(module, data, data)
    selective = entry(plugin.record, "selectivity")
    assert selective.value > 0.95 and selective.details["permuted"] < 0.1
    assert "permuted answers" not in selective.controls
    assert "hasn't learnt" in selective.control_reasons["permuted answers"]
    assert entry(plugin.record, "used_given_encoded").value is not None


def test_layers_and_their_head_are_found() -> None:
    model = Tokens()
    layers = layers_of(model)
    assert layers.names == ["blocks.0", "blocks.1", "blocks.2"] and layers.blocks
    rows = Padded().rows

    def forward(model: nn.Module, numbers: Tensor) -> Tensor:
        found: Tensor = model(rows["input_ids"][numbers], rows["attention_mask"][numbers])["logits"]
        return found

    material = Material.ask(model, torch.arange(128), forward=forward)
    assert head_of(material, "blocks.2") == ["norm", "head"]
    assert head_of(material, "blocks.1") == [], "another block reads it, with a mask"
    said = activations(material, layers.names, torch.arange(40))
    assert {tuple(tensor.shape) for tensor in said.values()} == {(40, 8, 16)}
    assert torch.allclose(model.head(model.norm(said["blocks.2"])), forward(model.eval(), torch.arange(40)), atol=1e-4)
    assert layers_of(nn.Linear(3, 2)).names == []
    assert layers_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))).names == ["1"]
    assert layers_of(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), ["0"]).found == "the taps"


def test_a_model_that_is_the_module_itself_is_copied_without_its_trainer(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    class Whole(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(10, 16), nn.Linear(16, 5)
            self.unpicklable: Any = None

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.b(torch.relu(self.a(x)))
            return found

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    class Generating(torch.utils.data.IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = (row for row in loader(128, batch_size=32))  # a trainer that holds it can't be copied

        def __iter__(self) -> Any:
            return iter(loader(128, batch_size=32))

    plugin = report(tmp_path)
    module, fit = Whole(), trainer(plugin)
    fit.fit(module, DataLoader(Generating(), batch_size=None))
    assert entry(plugin.record, "canonical_gini").controls["random-init"] > 0
    assert module._trainer is fit


def test_what_is_spread_over_ranks_says_so(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from legibility.lightning_plugins.report._queries import Subject

    monkeypatch.setattr(Subject, "sharded", True)
    plugin = report(tmp_path, scores="*", page=True)
    trainer(plugin).fit(make_module(pl), loader(64), loader(64))
    assert "spread over ranks" in entry(plugin.record, "circuit_nodes").reason
    assert "spread over ranks" in entry(plugin.record, "canonical_gini").reason
    assert entry(plugin.record, "held_out_kl").value is not None
    assert plugin.page_path is not None and "spread over ranks" in plugin.page_path.read_text()


def test_a_control_that_has_not_learnt_but_would_do_better_is_told() -> None:
    one = Applicable(Score("size", "share", "lower", lambda material: Reading(0.3)), False)
    found = Measured(
        "size", "share", "lower", 0.3, controls={"random-init": math.nan, "temperature 4": 0.4},
        control_reasons={"random-init": "it hasn't learnt"}, control_details={"random-init": {UNLEARNT: 0.1}},
    )  # fmt: skip
    entry = _entry(one, found)
    assert (entry.control, entry.control_name) == (0.4, "temperature 4") and entry.beaten_by == ()
    assert entry.details == {"doubted by random-init": 0.1}
    assert entry.control_reasons == {"random-init": "it hasn't learnt"}
