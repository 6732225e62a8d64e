"""InterpretabilityReport: only watches, measures the finished model, writes a record that reads back, tells the truth."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, validation_data, weights_of
from torch import Tensor, nn
from torch.utils.data import DataLoader

from legibility.lightning_plugins import (
    InterpretabilityReport,
    L1Sparsity,
    ModelPage,
    RandomInitControl,
    StudentLegibility,
    TemperatureControl,
    TopKSparsity,
)
from legibility.lightning_plugins.foundation._untouched import untouched
from legibility.scores import untrained
from legibility.students import FourierStudent, LinearStudent, MLPStudent
from legibility.tradeoff import RunRecord, load_record


def report(folder: Path, **options: Any) -> InterpretabilityReport:
    defaults = {"folder": str(folder), "queries": 128, "passes": 1, "progress": False, "held_out": [LinearStudent()]}
    return InterpretabilityReport(**{**defaults, **options})


def score(record: RunRecord, name: str, family: str | None = None) -> Any:
    (entry,) = [entry for entry in record.scores if entry.name == name and entry.family == family]
    return entry


def test_it_only_watches(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    bare, watched = make_module(pl), make_module(pl)
    for module in (bare, watched):
        module.net.insert(1, nn.Dropout(0.5))
        module.net.insert(2, nn.BatchNorm1d(64))
    torch.manual_seed(5)
    trainer(max_epochs=2).fit(bare, loader(128, shuffle=True), loader(128))
    after_bare = torch.rand(1)
    torch.manual_seed(5)
    trainer(report(tmp_path), max_epochs=2).fit(watched, loader(128, shuffle=True), loader(128))
    assert torch.equal(torch.rand(1), after_bare), "the random stream moved"
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert "training_step" not in vars(watched)
    assert not any(m._forward_hooks for m in watched.modules())
    assert {m.training for m in watched.modules()} == {m.training for m in bare.modules()}


def test_the_record_holds_what_was_run(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    module = make_module(pl)
    plugin = report(tmp_path, arm="mine", seed=3, recipe="test")
    students = [MLPStudent(width=8, depth=1)]
    ours = [StudentLegibility(0.1, students=students, taps="net.1", summary=False), L1Sparsity(5.0), plugin]
    trainer(ours, max_epochs=3).fit(module, loader(128), loader(128))
    assert plugin.path == tmp_path / "record.json"
    record = load_record(plugin.path)
    assert (record.arm, record.seed, record.recipe) == ("mine", 3, "test")
    assert record.strengths == {"legibility": 0.1, "l1": 5.0} and record.students == ["mlp"]
    x = torch.cat([batch[0] for batch in loader(128)])
    y = torch.cat([batch[1] for batch in loader(128)])
    expected = nn.functional.cross_entropy(module.net(x), y)
    assert record.task.loss == pytest.approx(float(expected), rel=1e-5)
    assert record.task.accuracy == pytest.approx(float((module.net(x).argmax(1) == y).float().mean()))
    assert record.task.source == "validation" and record.task.examples == 128
    assert record.cost.steps == 48 and set(record.cost.terms) == {type(c).__name__ for c in ours}
    zeros = torch.cat([p.detach().flatten() for p in module.net.parameters() if p.ndim == 2]) == 0
    assert score(record, "exact_zero_share").value == pytest.approx(float(zeros.float().mean()))
    assert score(record, "exact_zero_share").trained_on and not score(record, "held_out_kl").trained_on
    # The taps were named for the students and need not be named again.
    assert score(record, "fvu/net.1").value is not None and score(record, "patch_through_kl").value is not None
    assert score(record, "held_out_kl").control_name == "random-init"
    assert set(record.guards) == {"rms/net.1", "live_units/net.1", "effective_rank/net.1"}


def test_patch_through_of_a_perfect_prediction_is_zero_and_of_the_mean_is_not(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from legibility.lightning_plugins.report import _imitation_scores
    from legibility.scores import FamilyImitation, Queries

    module = make_module(pl)
    taps: list[Tensor] = []

    def perfect(queries: Queries, *args: Any, **kwargs: Any) -> dict[str, FamilyImitation]:
        taps.append(queries.taps["net.1"])
        predicted = {"net.1": queries.taps["net.1"][37:]}
        return {"linear": FamilyImitation("linear", 37, 128, predicted_taps=predicted)}

    def mean(queries: Queries, *args: Any, **kwargs: Any) -> dict[str, FamilyImitation]:
        tap = queries.taps["net.1"][37:]
        return {"linear": FamilyImitation("linear", 37, 128, predicted_taps={"net.1": tap.mean(0).expand_as(tap)})}

    found = {}
    for fake in (perfect, mean):
        monkeypatch.setattr(_imitation_scores, "held_out_imitation", fake)
        plugin = report(tmp_path, taps="net.1", random_init_control=False)
        trainer(plugin, max_epochs=3).fit(module, loader(128), loader(128, batch_size=24))
        assert plugin.record is not None
        found[fake.__name__] = score(plugin.record, "patch_through_kl/net.1", "linear").value
    assert found["perfect"] < 1e-7
    assert found["mean"] > 1e-3


def test_a_family_that_took_part_is_left_out_or_marked(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    students = [LinearStudent(width=4)]
    for held_out in ("auto", [LinearStudent(), FourierStudent()]):
        plugin = report(tmp_path, held_out=held_out, budget_seconds=math.inf, scores="canonical_gini")
        module = make_module(pl)
        trainer([StudentLegibility(0.1, students=students, summary=False), plugin]).fit(module, loader(), loader(128))
        assert plugin.record is not None
        families = {entry.family for entry in plugin.record.scores if entry.name == "held_out_kl"}
        if held_out == "auto":
            assert "linear" not in families and "fourier" in families
        else:
            assert score(plugin.record, "held_out_kl", "linear").trained_on
            assert not score(plugin.record, "held_out_kl", "fourier").trained_on
            assert score(plugin.record, "held_out_kl").trained_on, "a mean over a trained-with family is marked too"


def test_without_validation_the_queries_are_training_batches(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    plugin = report(tmp_path)
    module = make_module(pl)
    trainer(plugin, max_epochs=2).fit(module, loader(128))
    assert plugin.record is not None
    assert plugin.record.task.source == "training" and any("training examples" in n for n in plugin.record.notes)
    assert score(plugin.record, "held_out_kl").value is not None


@pytest.mark.parametrize("validated", [True, False])
def test_no_example_is_asked_twice_however_often_it_comes(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, validated: bool
) -> None:
    module = make_module(pl)
    plugin = report(tmp_path, queries=512)
    trainer(plugin, max_epochs=5).fit(module, loader(96), loader(96) if validated else None)
    inputs = torch.cat([call.args[0] for call in plugin._keeper.kept.calls])
    assert plugin._keeper.kept.split == ("validation" if validated else "training")
    assert len(inputs) == 96 and len({tuple(row.tolist()) for row in inputs}) == 96


def test_a_constant_model_has_no_score(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    module = make_module(pl)
    with torch.no_grad():
        module.net[4].weight.zero_()
    plugin = report(tmp_path)
    plugin.measure(trainer(plugin), module, validation_data(pl, 128))
    assert plugin.record is not None
    for name in ("held_out_kl", "disagreement", "imitation_saving", "adjusted_saving"):
        entry = score(plugin.record, name)
        assert entry.value is None and "constant" in entry.reason


def test_a_regression_says_why_it_has_no_imitation_score(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    module = make_module(pl)
    module.training_step = lambda batch, batch_idx: module.net(batch[0]).square().mean()
    data: Any = [(torch.randn(32, 10),) for _ in range(4)]
    plugin = report(tmp_path)
    trainer(plugin).fit(module, DataLoader(data, batch_size=None))
    assert plugin.record is not None
    entry = score(plugin.record, "held_out_kl")
    assert entry.value is None and "no class labels" in entry.reason
    assert score(plugin.record, "exact_zero_share").value == 0


def test_a_measurement_that_fails_costs_no_training(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    plugin = report(tmp_path, queries=32)
    module = make_module(pl)
    with pytest.warns(UserWarning, match="could not measure.*32 queries"):
        trainer(plugin, max_steps=1).fit(module, loader(8))
    record = load_record(tmp_path / "record.json")
    assert record.scores == [] and "measuring failed" in record.notes[0]


@pytest.mark.parametrize("named", [False, True])
def test_records_are_never_overwritten(module: Any, trainer: Callable[..., Any], tmp_path: Path, named: bool) -> None:
    folder = tmp_path / ("mine" if named else "legibility-report")
    for arm in ("first", "second"):
        plugin = InterpretabilityReport(
            arm, folder=str(folder) if named else None, queries=64, passes=1, progress=False, page=ModelPage()
        )
        trainer(plugin).fit(module, loader(128), loader(128))
    assert [load_record(folder / name).arm for name in ("record.json", "record-2.json")] == ["first", "second"]
    found = {path.name for path in folder.iterdir()}
    beside = {"model.html", "model-2.html", "picture.json.gz", "picture-2.json.gz"}
    assert found == {"record-2.json", "record.json", *beside}


def test_a_rehearsal_writes_nothing(module: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    trainer(report(tmp_path), fast_dev_run=True).fit(module, loader(128), loader(128))
    assert not list(tmp_path.rglob("*.json"))


def test_the_temperature_control_has_the_task_loss_it_matches(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    module = make_module(pl, optimizer="adamw")
    plugin = report(tmp_path / "plain", arm="plain", taps="net.1")
    trainer(plugin, max_epochs=10).fit(module, loader(256), loader(256))
    plain = plugin.record
    assert plain is not None and plain.task.loss is not None
    before = weights_of(module)
    target = plain.task.loss * 1.2
    control = report(tmp_path / "flat", arm="temperature", taps="net.1")
    flat = control.measure(
        trainer(control), module, validation_data(pl, 256), control=TemperatureControl("plain", "arm", target)
    )
    assert flat.task.loss == pytest.approx(target, rel=1e-5) and flat.control_of is not None
    assert flat.control_of.kind == "temperature" and flat.control_of.matches == "arm"
    assert flat.control_of.temperature is not None and flat.control_of.temperature > 1
    # What softening can't change, and what it can.
    for name in ("disagreement", "code_length", "imitation_saving"):
        assert score(flat, name).value == pytest.approx(score(plain, name).value, abs=1e-6)
    assert score(flat, "held_out_kl").value < score(plain, "held_out_kl").value
    assert score(flat, "patch_through_kl").value < score(plain, "patch_through_kl").value
    untrained_record = control.measure(
        trainer(control), module, validation_data(pl, 256), control=RandomInitControl("plain")
    )
    assert untrained_record.task.loss is not None and untrained_record.task.loss > 1.3  # log 5 = 1.61
    assert torch.equal(weights_of(module), before), "the controls left the model as it was"


def test_scores_reach_the_loggers(pl: Any, trainer: Callable[..., Any], module: Any, tmp_path: Path) -> None:
    loggers = __import__(f"{pl.__name__}.loggers", fromlist=["CSVLogger"])
    logger = loggers.CSVLogger(tmp_path)
    plugin = InterpretabilityReport(queries=64, passes=1, progress=False, held_out=[LinearStudent()])
    trainer(plugin, logger=logger).fit(module, loader(128), loader(128))
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert "legibility/score/held_out_kl" in header and "legibility/score/exact_zero_share" in header
    assert plugin.path == Path(logger.log_dir) / "legibility-report" / "record.json"


def test_a_logged_metric_can_be_the_task_loss(module: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    plugin = report(tmp_path, task_loss="val_loss")
    fit = trainer(plugin)
    fit.fit(module, loader(128), loader(128))
    assert plugin.record is not None and plugin.record.task.loss == float(fit.callback_metrics["val_loss"])
    plugin = report(tmp_path, task_loss="nope")
    with pytest.warns(UserWarning, match="`task_loss` = 'nope' was never logged.*val_loss"):
        trainer(plugin).fit(module, loader(128), loader(128))
    assert plugin.record is not None and plugin.record.task.source == "validation"
    assert plugin.record.task.loss is not None and "`task_loss` = 'nope'" in plugin.record.notes[-1]
    assert score(plugin.record, "held_out_kl").value is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arm": ""}, "ValueError: `arm`"),
        ({"arm": 3}, "TypeError: `arm` must be a string.* got 3"),
        ({"recipe": 3}, "TypeError: `recipe` must be a string or None, got 3"),
        ({"folder": 3}, "TypeError: `folder` must be a path or None, got 3"),
        ({"concepts": 2}, "TypeError: `concepts` must be a string or None, got 2"),
        ({"seed": "x"}, "TypeError: `seed` must be a whole number, got 'x'"),
        ({"seed": True}, "TypeError: `seed`"),
        ({"queries": 31}, "ValueError: `queries`.*31"),
        ({"queries": "many"}, "TypeError: `queries` must be a whole number >= 32, got 'many'"),
        ({"passes": 0}, "ValueError: `passes`.*0"),
        ({"passes": 1.5}, "TypeError: `passes`.*1.5"),
        ({"budget": "all"}, "TypeError: `budget`.*'all'"),
        ({"budget_seconds": "all"}, "TypeError: `budget_seconds`.*'all'"),
        ({"held_out": []}, "ValueError: `held_out` is empty"),
        ({"held_out": "GRU"}, "ValueError: `held_out` must be \"auto\" or a list .* got 'GRU'"),
        ({"held_out": [MLPStudent]}, r"TypeError: `held_out` must .* got the class MLPStudent: write `MLPStudent\(\)`"),
        ({"held_out": [3]}, "TypeError: `held_out` must .* got 3 among them"),
        ({"held_out": MLPStudent()}, "TypeError: `held_out` must"),
        (
            {"scores": "circuitt_*"},
            r"ValueError: `scores` pattern 'circuitt_\*' matches no name. Near: .*circuit_edges",
        ),
        ({"scores": ["*", 3]}, "TypeError: `scores`"),
        ({"page": "yes"}, "TypeError: `page`.*'yes'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    kind, _, text = message.partition(": ")
    with pytest.raises({"TypeError": TypeError, "ValueError": ValueError}[kind], match=text):
        InterpretabilityReport(**options)


@pytest.mark.parametrize("validated", [True, False])
def test_concepts_that_no_batch_holds_stop_before_training(
    module: Any, trainer: Callable[..., Any], validated: bool
) -> None:
    before = weights_of(module)
    data = [loader(128), loader(128)] if validated else [loader(128)]
    with pytest.raises(ValueError, match="`concepts` = '7' leads to no labels"):
        trainer(InterpretabilityReport(concepts="7"), num_sanity_val_steps=2).fit(module, *data)
    assert torch.equal(before, weights_of(module))
    trainer(InterpretabilityReport(concepts="1"), num_sanity_val_steps=2, max_steps=1).fit(module, *data)


def test_names_that_match_nothing_stop_before_training(module: Any, trainer: Callable[..., Any]) -> None:
    before = weights_of(module)
    with pytest.raises(ValueError, match="`taps` pattern 'nett.*'"):
        trainer(InterpretabilityReport(taps="nett.*")).fit(module, loader())
    assert torch.equal(before, weights_of(module)) and "training_step" not in vars(module)


def test_untrained_draws_everything_and_puts_it_back() -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
            self.own = nn.Parameter(torch.full((4, 4), 3.0))

    model = Custom()
    kept = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    with untrained(model) as uncovered:
        assert uncovered == 1
        assert not torch.equal(model.layer.weight, kept["layer.weight"])
        assert not torch.equal(model.own, kept["own"]) and 1.5 < model.own.std() < 5.0
        first = model.layer.weight.detach().clone()
    with untrained(model):
        assert torch.equal(first, model.layer.weight), "the draw depends on its seed alone"
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_untouched_restores_buffers_even_of_modules_that_always_write() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    model = Counter()
    with pytest.raises(ZeroDivisionError), untouched(model):
        model(torch.ones(1))
        _ = 1 / 0
    assert model.calls == 0 and model.training


def test_the_record_is_plain_json(module: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    trainer(report(tmp_path)).fit(module, loader(128), loader(128))
    payload = json.loads((tmp_path / "record.json").read_text())
    assert payload["schema"] == "legibility.run-record/1"


def test_the_record_says_what_zeros_would_save(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def entries(*callbacks: Any) -> dict[str, Any]:
        plugin = report(tmp_path, random_init_control=False)
        trainer([*callbacks, plugin], max_epochs=2).fit(make_module(pl), loader(128), loader(128))
        assert plugin.record is not None
        return {entry.name: entry.value for entry in plugin.record.scores}

    assert "sparse_flops_share" not in entries()
    found = entries(TopKSparsity(0.9))
    kept = 1 - found["exact_zero_share"]
    assert found["sparse_flops_share"] == pytest.approx(kept, abs=1e-3), "a chain of matrices"
    # 32 bits for each weight that is left, 1 for its place; biases whole.
    weights, biases = 10 * 64 + 64 * 64 + 64 * 5, 64 + 64 + 5
    expected = (weights * (kept * 32 + 1) + 32 * biases) / (32 * (weights + biases))
    assert found["sparse_bytes_share"] == pytest.approx(expected, abs=1e-3)


def test_a_model_of_zeros_has_only_zeros_and_no_spread(
    module: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    plugin = report(tmp_path, budget=0.0)
    trainer([L1Sparsity(1e5), plugin], max_epochs=2).fit(module, loader(128), loader(128))
    assert all((w == 0).all() for w in module.parameters() if w.ndim == 2)
    assert plugin.record is not None
    names = ("exact_zero_share", "active_weight_share", "dead_unit_share", "sparse_flops_share")
    assert [score(plugin.record, name).value for name in names] == [1.0, 0.0, 1.0, 0.0]
    assert score(plugin.record, "sparse_bytes_share").value < 0.1
    spread = score(plugin.record, "gini")
    assert spread.value is None and spread.reason == "every weight is zero: there is no spread"


def test_two_callbacks_of_one_kind_are_both_in_the_record(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L1Sparsity, "seconds_per_step", 0.25)
    plugin = report(tmp_path)
    two = [L1Sparsity(5.0, targets="net.0.weight"), L1Sparsity(7.0, targets="net.2.weight")]
    trainer([*two, plugin], max_epochs=1).fit(make_module(pl), loader(64), loader(64))
    assert plugin.record is not None
    assert plugin.record.strengths == {"l1": 5.0, "l1_2": 7.0}
    assert plugin.record.cost.terms["L1Sparsity"] == 0.5
