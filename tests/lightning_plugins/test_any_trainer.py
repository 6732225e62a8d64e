"""All callbacks together in the trainers that users have: strength 0 is no callback, a strength does something."""

import contextlib
import copy
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, weights_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from legibility.lightning_plugins import InterpretabilityReport, L1Sparsity, StudentLegibility
from legibility.students import MLPStudent


def students(strength: float, **options: Any) -> StudentLegibility:
    settings: dict[str, Any] = {"students": [MLPStudent(width=8)], "warmup": 0.0, "summary": False, "model": "net"}
    return StudentLegibility(strength, **{**settings, **options})


def plugins(strength: float, folder: Path, total_steps: int | None = None) -> list[Any]:
    report = InterpretabilityReport(
        folder=str(folder),
        queries=32,
        held_out=[MLPStudent(width=8)],
        passes=1,
        random_init_control=False,
        progress=False,
    )
    return [students(strength), L1Sparsity(10 * strength, total_steps=total_steps), report]


def clean(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    wrapped = {"training_step", "manual_backward"} & set(vars(module))
    return not wrapped and not any(getattr(inner, name) for inner in module.modules() for name in hooks)


def ema(namespace: Any) -> Any:
    """An averaging callback as users write it: a deep copy in setup, an update for each batch."""

    class EMA(namespace.Callback):  # type: ignore[misc]
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self.copy = copy.deepcopy(pl_module.net)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            with torch.no_grad():
                for mine, theirs in zip(self.copy.parameters(), pl_module.net.parameters(), strict=True):
                    mine.lerp_(theirs, 0.1)
            self.copy(torch.zeros(2, 10))

    return EMA()


def beside(namespace: Any, name: str, folder: Path) -> list[Any]:
    """Callbacks that stand beside ours in the trainer of that name."""
    callbacks = namespace.callbacks
    made: dict[str, Callable[[], Any]] = {
        "swa": lambda: callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
        "weight_averaging": lambda: callbacks.WeightAveraging(),
        "checkpoint": lambda: callbacks.ModelCheckpoint(folder, monitor="val_loss", save_last=True),
        "early_stopping": lambda: callbacks.EarlyStopping("val_loss", patience=1, min_delta=1.0),
        "ema": lambda: ema(namespace),
        "timer": lambda: callbacks.Timer(duration={"hours": 1}),
    }
    if name == "weight_averaging" and not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no WeightAveraging")
    return [made[name]()] if name in made else []


TRAINERS: dict[str, dict[str, Any]] = {
    "fast_dev_run": {"fast_dev_run": 3},
    "overfit_batches": {"overfit_batches": 2, "max_epochs": 3},
    "limits": {"limit_train_batches": 3, "limit_val_batches": 1, "max_epochs": 2},
    "max_time": {"max_time": {"minutes": 5}, "max_epochs": 2},
    "max_steps": {"max_steps": 5, "max_epochs": -1},
    "sanity": {"num_sanity_val_steps": 2, "val_check_interval": 3, "max_epochs": 2},
    "accumulate": {"accumulate_grad_batches": 3, "max_epochs": 2},
    "swa": {"max_epochs": 4},
    "weight_averaging": {"max_epochs": 2},
    "checkpoint": {"max_epochs": 2, "enable_checkpointing": True},
    "early_stopping": {"max_epochs": 6},
    "ema": {"max_epochs": 2},
    "timer": {"max_epochs": 2},
}


@pytest.mark.parametrize("case", TRAINERS)
def test_strength_zero_is_no_callback_and_strength_is_something(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, case: str
) -> None:
    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)
        torch.manual_seed(5)
        own = trainer([*beside(pl, case, tmp_path / str(len(ours))), *ours], **TRAINERS[case])
        own.fit(module, loader(shuffle=True), loader(rows=16))
        assert own.state.finished
        assert clean(module)
        return weights_of(module)

    bare = fit()
    assert torch.equal(bare, fit(*plugins(0.0, tmp_path / "zero")))
    ours = plugins(0.7, tmp_path / "some")
    assert not torch.allclose(bare, fit(*ours), rtol=1e-3)
    assert ours[0].built is not None, "students took part"


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_verbs_are_untouched(pl: Any, trainer: Callable[..., Any], tmp_path: Path, verb: str) -> None:
    module = make_module(pl)
    module.test_step = module.validation_step
    module.predict_step = lambda batch, batch_idx: module.net(batch[0])
    legibility = students(0.7)
    before = weights_of(module)
    mine, none = trainer([legibility, L1Sparsity(5.0)]), trainer()
    found, expected = getattr(mine, verb)(module, loader()), getattr(none, verb)(module, loader())
    assert legibility.built is None and clean(module) and torch.equal(weights_of(module), before)
    if verb == "predict":
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    else:
        assert found == expected


def test_between_two_fits_validation_changes_no_student(pl: Any, trainer: Callable[..., Any]) -> None:
    module, legibility = make_module(pl), students(0.7)
    own = trainer(legibility)
    own.fit(module, loader(), loader())
    assert legibility.built is not None
    before = {name: weights_of(network).clone() for name, network in legibility.built.cohort.networks.items()}
    own.validate(module, loader())
    for name, network in legibility.built.cohort.networks.items():
        assert torch.equal(weights_of(network), before[name])


@pytest.mark.parametrize("tune", ["lr_find", "scale_batch_size"])
def test_tuners_find_what_they_find_without_us(pl: Any, trainer: Callable[..., Any], tmp_path: Path, tune: str) -> None:
    tuning = importlib.import_module(f"{pl.__name__}.tuner")

    def found(*ours: Any) -> tuple[Any, Tensor]:
        module = make_module(pl)
        module.learning_rate, module.batch_size = 0.1, 2
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=module.learning_rate)
        module.train_dataloader = lambda: loader(batch_size=module.batch_size)
        module.val_dataloader = lambda: loader(rows=32)
        own = trainer(list(ours), enable_checkpointing=True, logger=False)
        tuner = tuning.Tuner(own)
        if tune == "lr_find":
            result = tuner.lr_find(module, num_training=20, update_attr=True).results["loss"]
        else:
            result = tuner.scale_batch_size(module, max_trials=2, steps_per_trial=1)
        own.fit(module)
        assert clean(module)
        return result, weights_of(module)

    bare, ours = found(), found(*plugins(0.0, tmp_path))
    assert bare[0] == ours[0]
    assert torch.equal(bare[1], ours[1])
    found(*plugins(0.7, tmp_path / "again"))


class Endless(IterableDataset[Any]):
    """Batches without a length."""

    def __iter__(self) -> Iterator[Any]:
        yield from loader()


def test_iterable_data(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)
        trainer(list(ours), max_epochs=2).fit(module, DataLoader(Endless(), batch_size=None))
        return weights_of(module)

    bare = fit()
    assert torch.equal(bare, fit(*plugins(0.0, tmp_path / "zero")))
    assert not torch.allclose(bare, fit(*plugins(0.7, tmp_path / "some", total_steps=16)), rtol=1e-3)
    with pytest.raises(ValueError, match="`total_steps`: the trainer can't tell how long this fit is"):
        fit(L1Sparsity(7.0))


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle"])
def test_several_loaders(pl: Any, trainer: Callable[..., Any], tmp_path: Path, mode: str) -> None:
    combined = importlib.import_module(f"{pl.__name__}.utilities.combined_loader").CombinedLoader

    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)
        step = type(module).training_step

        def training_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            if isinstance(batch, dict):
                return sum(step(self, part, batch_idx) for part in batch.values() if part is not None)
            return step(self, batch, batch_idx)

        type(module).training_step = training_step
        trainer(list(ours)).fit(module, combined({"a": loader(), "b": loader(rows=32)}, mode))
        return weights_of(module)

    bare = fit()
    assert torch.equal(bare, fit(*plugins(0.0, tmp_path / "zero")))
    assert not torch.allclose(bare, fit(*plugins(0.7, tmp_path / "some")), rtol=1e-3)


@pytest.mark.parametrize("kind", ["frozen_part", "tied", "float64", "complex_and_0d"])
def test_unusual_models(pl: Any, trainer: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    def module() -> Any:
        made = make_module(pl)
        if kind == "frozen_part":
            made.net[0].requires_grad_(False)
        elif kind == "tied":
            made.net.insert(3, nn.Linear(64, 64))
            made.net[3].weight = made.net[2].weight
        elif kind == "float64":
            made.double()
        else:

            class Odd(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.scale = nn.Parameter(torch.tensor(1.0))
                    self.turn = nn.Parameter(torch.ones(64, dtype=torch.complex64))

                def forward(self, x: Tensor) -> Tensor:
                    return self.scale * (self.turn * x).real

            made.net.insert(1, Odd())
        return made

    def data() -> DataLoader[Any]:
        made = loader()
        if kind == "float64":
            made.dataset.tensors = tuple(  # type: ignore[attr-defined]
                t.double() if t.is_floating_point() else t
                for t in made.dataset.tensors  # type: ignore[attr-defined]
            )
        return made

    def fit(*ours: Any) -> Any:
        made = module()
        trainer(list(ours), max_epochs=2).fit(made, data(), data())
        assert clean(made)
        return made

    def real(made: Any) -> Tensor:
        return torch.cat([torch.view_as_real(p.detach().to(torch.complex128)).flatten() for p in made.parameters()])

    bare, zero, some = fit(), fit(*plugins(0.0, tmp_path / "zero")), fit(*plugins(0.7, tmp_path / "some"))
    assert torch.equal(real(bare), real(zero))
    assert not torch.allclose(real(bare), real(some), rtol=1e-3)
    if kind == "frozen_part":
        assert torch.equal(bare.net[0].weight, some.net[0].weight), "frozen weights stay"
    if kind == "tied":
        assert some.net[3].weight is some.net[2].weight


def test_ctrl_c_in_the_middle_leaves_everything_as_it_was(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    module = make_module(pl)

    class Stop(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise KeyboardInterrupt

    ours = plugins(0.7, tmp_path)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer([*ours, Stop()]).fit(module, loader(), loader())
    assert clean(module)
    trainer(ours).fit(module, loader(), loader())
    assert clean(module)
    assert list(tmp_path.rglob("*.json")), "the second fit's record"


def test_deepspeed_is_refused_before_anything_is_installed(
    module: Any, trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DeepSpeedStrategy:
        """Not installed here: the name is all that is looked at."""

    for plugin in plugins(0.7, tmp_path):
        own = trainer(plugin)
        monkeypatch.setattr(type(own), "strategy", DeepSpeedStrategy())
        with pytest.raises(NotImplementedError, match="`strategy`: DeepSpeed is not supported"):
            plugin.setup(own, module, "fit")
        monkeypatch.undo()
        assert clean(module)
