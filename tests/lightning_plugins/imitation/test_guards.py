"""Guards: each constructed collapse trips its own guard, once; training that goes well trips none."""

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, weights_of
from torch import Tensor, nn

from legibility.lightning_plugins import StudentLegibility
from legibility.lightning_plugins.foundation._recording import Recording
from legibility.lightning_plugins.imitation._guards import Guards, collapse, information
from legibility.students import MLPStudent, read_signature

CLASSES, UNITS = 10, 16


def rows(count: int, units: int, seed: int = 0) -> Tensor:
    return torch.randn(count, units, generator=torch.Generator().manual_seed(seed))


class Model:
    """What a model with one tap says in each step; a test lets parts of it collapse."""

    def __init__(self, kind: Any = "distribution", watching: bool = True, count: int = 64, outputs: int = CLASSES):
        self.kind, self.count, self.outputs, self.seed = kind, count, outputs, 0
        self.guards, self.watching = Guards(), watching
        self.heard: list[str] = []

    def step(self, output: Any = None, tap: Any = None, count: int | None = None) -> dict[str, Any]:
        self.seed += 1
        count = count or self.count
        h, t = 3 * rows(count, self.outputs, self.seed), rows(count, UNITS, self.seed + 1000)
        h, t = h if output is None else output(h), t if tap is None else tap(t)
        x = rows(count, 5)
        recording = Recording((x,), {}, x, None, h, {"net.1": t})
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            logs = self.guards.look(recording, self.kind, read_signature(x, h, {"net.1": t}), warn=self.watching)
        self.heard += [str(warning.message) for warning in found]
        return logs


COLLAPSES: dict[str, tuple[str, dict[str, Any]]] = {
    "the tap shrinks": ("guard/net.1/rms", {"tap": lambda t: 0.05 * t}),
    "the tap's units die": ("guard/net.1/live", {"tap": lambda t: torch.cat([t[:, :3], 0 * t[:, 3:] + 1], 1)}),
    "the tap is constant": ("guard/net.1/live", {"tap": lambda t: 0 * t + 1}),
    "the tap lies on a line": ("guard/net.1/rank", {"tap": lambda t: 4 * t[:, :1] * torch.linspace(1, 2, UNITS)}),
    "the output is constant": ("guard/information", {"output": lambda h: 0 * h + 3 * rows(1, CLASSES)}),
    "the output is softened to nothing": ("guard/information", {"output": lambda h: 0.05 * h}),
}


@pytest.mark.parametrize("name", COLLAPSES)
def test_each_collapse_trips_its_guard_once_and_only_after_three_measurements(name: str) -> None:
    key, how = COLLAPSES[name]
    model = Model()
    for _ in range(3):
        model.step()
    for times in range(3):
        assert not any(key in message for message in model.heard), times
        model.step(**how)
    assert sum(f"legibility/{key} " in message for message in model.heard) == 1
    heard = len(model.heard)
    for _ in range(5):
        model.step(**how)
    assert len(model.heard) == heard, "said once"
    (message,) = [message for message in model.heard if f"legibility/{key} " in message]
    assert "Lower `strength`" in message and "->" in message


@pytest.mark.parametrize("name", COLLAPSES)
def test_nobody_is_warned_where_nothing_is_asked_of_the_primary(name: str) -> None:
    model = Model(watching=False)
    model.step()
    for _ in range(5):
        model.step(**COLLAPSES[name][1])
    assert model.heard == []


def test_what_is_no_collapse_trips_nothing() -> None:
    model = Model()
    for step in range(12):
        model.step(
            output=lambda h: 0.3 * h,  # softer, and still far from saying nothing
            tap=lambda t: 0.2 * t.relu(),
        )
        if step % 3 == 0:  # short last batches have fewer directions and fewer live units
            for _ in range(4):
                model.step(count=2)
        for _ in range(2):  # twice in a row by chance
            model.step(output=lambda h: 0 * h, tap=lambda t: 0 * t)
    assert model.heard == []


def test_a_rank_that_is_all_that_the_output_needs_has_not_collapsed() -> None:
    """Classes that a model tells apart perfectly lie in (classes - 1) directions, however many there were before."""

    def two_clusters(t: Tensor) -> Tensor:
        return torch.where(torch.arange(len(t)).unsqueeze(1) % 2 == 0, 1.0, -1.0) * torch.linspace(1, 2, UNITS)

    two, ten = Model(outputs=2), Model(outputs=CLASSES)
    for model in (two, ten):
        model.step()
        for _ in range(5):
            model.step(tap=two_clusters)
    assert two.heard == []
    assert len(ten.heard) == 1 and "guard/net.1/rank" in ten.heard[0]


def test_values_are_guarded_without_information() -> None:
    model = Model(kind="values", outputs=3)
    assert set(model.step()) == {f"guard/{place}{name}" for place in ("", "net.1/") for name in ("rank", "rms", "live")}
    for _ in range(3):
        model.step(output=lambda h: 0 * h + 1)
    assert any("guard/live" in message for message in model.heard)


def test_an_output_that_begins_at_zero_may_grow_and_then_collapse() -> None:
    model = Model()
    for _ in range(5):
        model.step(output=lambda h: 0 * h)
    for _ in range(3):
        model.step()
    assert model.heard == []
    for _ in range(3):
        model.step(output=lambda h: 0 * h)
    assert any("guard/information" in message for message in model.heard)


def test_numbers_that_are_not_finite_are_not_measured() -> None:
    model = Model()
    assert set(model.step(tap=lambda t: t / 0)) == {f"guard/{name}" for name in ("rank", "rms", "live", "information")}
    assert model.step(output=lambda h: h * math.nan, tap=lambda t: t * math.inf) == {}
    assert model.step(count=1) == {}, "one row has no directions"


def test_information_by_hand_and_of_constants() -> None:
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    expected = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    assert information(p.log()) == pytest.approx(expected, abs=1e-6)
    assert information(torch.ones(8, 5) + torch.arange(5.0)) == pytest.approx(0, abs=1e-6)
    assert information(torch.full((8, 5), -1e4)) == pytest.approx(0, abs=1e-6)
    assert information(1e4 * torch.eye(6)) == pytest.approx(math.log(6), rel=1e-5)
    assert information(torch.eye(6).half()) > 0


def test_wide_activations_are_measured_on_some_units() -> None:
    wide = rows(64, 4000)
    assert collapse(wide)["live"] == 512 and collapse(wide)["rms"] == pytest.approx(1, abs=0.02)


def test_padding_is_not_measured() -> None:
    ids, mask = torch.randint(0, 7, (8, 6)), torch.arange(6).expand(8, 6) < 4
    output = torch.randn(8, 6, 7)
    found = []
    for padding in (0.0, 1e6, math.nan):
        filled = torch.where(mask.unsqueeze(-1), output, padding)
        recording = Recording((ids,), {}, ids, mask, filled, {"net": filled})
        found.append(Guards().look(recording, "distribution", read_signature(ids, filled, {"net": filled}), warn=True))
    assert found[0] == found[1] == found[2] and "guard/net/rank" in found[0] and "guard/information" in found[0]


def test_the_rows_that_are_measured_neither_use_nor_move_the_random_stream() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = Model(count=1000).step(), Model(count=1000).step()
    assert torch.equal(before, torch.get_rng_state()) and first == second


def test_the_state_goes_on_in_the_middle_of_a_collapse() -> None:
    how = COLLAPSES["the tap shrinks"][1]
    model = Model()
    for step in range(3):
        model.step(**(how if step else {}))
    resumed = Model()
    resumed.guards.load_state_dict(model.guards.state_dict())
    resumed.step(**how)
    assert len(resumed.heard) == 1
    again = Model()
    again.guards.load_state_dict(resumed.guards.state_dict())
    for _ in range(4):
        again.step(**how)
    assert again.heard == []


# -- in a fit


def callback(strength: float, **options: Any) -> StudentLegibility:
    return StudentLegibility(
        strength, **{"students": [MLPStudent(width=8)], "warmup": 0.0, "summary": False, "taps": "net.3", **options}
    )


@pytest.fixture
def heard() -> Iterator[list[warnings.WarningMessage]]:
    """Warnings of the test."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def guarded(found: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in found if "trivial instead of legible" in str(w.message)]


def test_training_that_goes_well_is_logged_and_trips_nothing(
    pl: Any, trainer: Callable[..., Any], heard: list[warnings.WarningMessage]
) -> None:
    module = make_module(pl, optimizer="adamw")
    seen: list[dict[str, float]] = []

    class Look(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items() if "guard" in name})

    trainer([callback(0.3), Look()], max_epochs=12, log_every_n_steps=2).fit(module, loader(rows=256, batch_size=32))
    assert guarded(heard) == []
    keys = {f"legibility/guard/{place}{n}" for place in ("", "net.3/") for n in ("rank", "rms", "live")}
    assert set(seen[-1]) == keys | {"legibility/guard/information"}
    assert seen[-1]["legibility/guard/information"] > 5 * seen[2]["legibility/guard/information"], "it has learnt"
    assert 1 <= seen[-1]["legibility/guard/net.3/rank"] <= 32 and seen[-1]["legibility/guard/net.3/live"] == 64
    x = next(iter(loader(rows=256, batch_size=32)))[0]
    with torch.no_grad():
        assert 0.5 < seen[-1]["legibility/guard/net.3/rms"] / float(module.net[:4](x).square().mean().sqrt()) < 2


def test_a_model_that_is_made_constant_trips_in_a_fit(
    pl: Any, trainer: Callable[..., Any], heard: list[warnings.WarningMessage]
) -> None:
    """The students hold the model at a constant: with no task and a great strength that is the easiest answer."""
    module = make_module(pl)
    step = type(module).training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        learnt = self.global_step > 40
        return step(self, batch, batch_idx) if not learnt else 30 * self.net(batch[0]).square().mean()

    type(module).training_step = training_step
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters(), lr=1e-2)
    trainer(callback(1.0), max_epochs=15, log_every_n_steps=2).fit(module, loader(rows=256, batch_size=32))
    told = guarded(heard)
    assert any("legibility/guard/information" in message for message in told) and len(told) <= 4


def test_without_a_term_guards_are_logged_only(
    pl: Any, trainer: Callable[..., Any], heard: list[warnings.WarningMessage]
) -> None:
    module = make_module(pl)
    type(module).training_step = lambda self, batch, batch_idx: 30 * self.net(batch[0]).square().mean()
    fit = trainer(callback(0.0, imitate="distribution"), max_epochs=5, log_every_n_steps=2)
    fit.fit(module, loader(rows=256, batch_size=32))
    assert guarded(heard) == [] and "legibility/guard/information" in fit.callback_metrics


def test_they_are_measured_in_steps_that_are_logged_only(
    module: Any, trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Recording] = []
    look = Guards.look

    def counted(self: Guards, recording: Recording, *args: Any, **options: Any) -> Any:
        looks.append(recording)
        return look(self, recording, *args, **options)

    monkeypatch.setattr(Guards, "look", counted)
    trainer(callback(0.3), max_epochs=2, log_every_n_steps=4).fit(module, loader())  # 16 steps
    assert len(looks) == 1 + 4, "the first step is the reference"


def test_a_resumed_fit_keeps_the_reference(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    first, second = callback(0.3), callback(0.3)
    fit = trainer(first, max_epochs=2, log_every_n_steps=2)
    fit.fit(make_module(pl), loader())
    fit.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    module = make_module(pl)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    trainer(second, max_epochs=3, log_every_n_steps=2).fit(module, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert first.built is not None and second.built is not None
    same, after = first.built.guards.state_dict()["reference"], second.built.guards.state_dict()["reference"]
    assert {k: v for k, v in same.items() if "information" not in k} == {
        k: v for k, v in after.items() if "information" not in k
    }
    assert torch.isfinite(weights_of(module)).all()


def test_convolutional_taps(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    module.net = nn.Sequential(
        nn.Unflatten(1, (1, 10)), nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 5)
    )
    fit = trainer(callback(0.3, taps="net.1"), log_every_n_steps=4)
    fit.fit(module, loader())
    assert 0 < float(fit.callback_metrics["legibility/guard/net.1/live"]) <= 64
