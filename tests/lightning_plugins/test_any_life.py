"""All callbacks through lives that fits have: several in a row, none at all, stopped, copied, pickled, thawed half-way."""

import copy
import importlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, weights_of
from torch import Tensor, nn

from legibility.lightning_plugins import InterpretabilityReport, L1InsteadOfL2, L1Sparsity, StudentLegibility
from legibility.students import MLPStudent

STUDENTS = [MLPStudent(width=8)]


def plugins(strength: float, folder: Path) -> list[Any]:
    return [
        StudentLegibility(strength, students=STUDENTS, warmup=0.0, summary=False, model="net"),
        L1Sparsity(10 * strength),
        InterpretabilityReport(
            folder=str(folder), queries=32, held_out=STUDENTS, passes=1, random_init_control=False, progress=False
        ),
    ]


def clean(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    wrapped = {"training_step", "manual_backward"} & set(vars(module))
    return not wrapped and not any(getattr(inner, name) for inner in module.modules() for name in hooks)


def compared(fit: Callable[..., Tensor], folder: Path) -> None:
    """Strength 0 is no callback, bit for bit; a strength does something."""
    bare = fit()
    assert torch.equal(bare, fit(*plugins(0.0, folder / "zero")))
    assert not torch.allclose(bare, fit(*plugins(0.7, folder / "some")), rtol=1e-3)


def test_several_fits_of_one_module_and_of_another(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)
        torch.manual_seed(5)
        for _ in range(2):
            own = trainer(list(ours))
            own.fit(module, loader(shuffle=True), loader(rows=16))
            own.validate(module, loader(rows=16), verbose=False)
            assert clean(module)
        other = make_module(pl)
        trainer(list(ours)).fit(other, loader(shuffle=True), loader(rows=16))
        assert clean(module) and clean(other)
        return torch.cat([weights_of(module), weights_of(other)])

    compared(fit, tmp_path)


def test_one_trainer_fits_twice(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)
        own = trainer(list(ours), max_epochs=1)
        own.fit(module, loader(), loader(rows=16))
        own.fit_loop.max_epochs = 3
        own.fit(module, loader(), loader(rows=16))
        assert own.current_epoch == 3 and clean(module)
        return weights_of(module)

    compared(fit, tmp_path)


NOTHING: dict[str, dict[str, Any]] = {
    "max_steps": {"max_steps": 0},
    "max_epochs": {"max_epochs": 0},
    "limit_train_batches": {"limit_train_batches": 0},
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_fit_without_a_step_is_no_error(pl: Any, trainer: Callable[..., Any], tmp_path: Path, case: str) -> None:
    module = make_module(pl)
    before = weights_of(module).clone()
    trainer(plugins(0.7, tmp_path), **NOTHING[case]).fit(module, loader(), loader(rows=16))
    assert torch.equal(weights_of(module), before) and clean(module)
    trainer(plugins(0.7, tmp_path)).fit(module, loader(), loader(rows=16))
    assert not torch.equal(weights_of(module), before)


@pytest.mark.parametrize("when", ["max_time", "should_stop"])
def test_a_fit_that_is_stopped_half_way(pl: Any, trainer: Callable[..., Any], tmp_path: Path, when: str) -> None:
    class Stop(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                trainer.should_stop = True

    module, ours = make_module(pl), plugins(0.7, tmp_path)
    options: dict[str, Any] = {"max_time": {"seconds": 1}} if when == "max_time" else {}
    own = trainer([*ours, *([Stop()] if when == "should_stop" else [])], max_epochs=100_000, **options)
    own.fit(module, loader(rows=64 if when == "should_stop" else 512), loader(rows=16))
    assert own.state.finished and own.current_epoch < 100_000 and clean(module)
    assert list(tmp_path.rglob("*.json")), "it is reported like any other"


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_callbacks_are_copied_and_pickled_before_and_after_a_fit(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, how: str
) -> None:
    def made(thing: Any) -> Any:
        return copy.deepcopy(thing) if how == "deepcopy" else pickle.loads(pickle.dumps(thing))

    first = [*plugins(0.7, tmp_path), L1InsteadOfL2()]
    second = made(first)
    modules = [make_module(pl), make_module(pl)]
    trainer(first).fit(modules[0], loader(), loader(rows=16))
    trainer(second).fit(modules[1], loader(), loader(rows=16))
    assert torch.equal(weights_of(modules[0]), weights_of(modules[1]))
    third = made(first)
    trainer(third).fit(make_module(pl), loader(), loader(rows=16))
    assert third[0].built is not None and third[0].built.cohort is not first[0].built.cohort


def test_callbacks_are_copied_in_the_middle_of_a_fit(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    ours = plugins(0.7, tmp_path)

    class Copy(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            copied = pickle.loads(pickle.dumps(copy.deepcopy(pl_module.net)))
            assert clean(copied) or not any(m._forward_pre_hooks for m in copied.modules())
            copied(torch.zeros(2, 10))  # what is copied records nothing

    module = make_module(pl)
    trainer([*ours, Copy()]).fit(module, loader(), loader(rows=16))
    assert clean(module)


# -- models that are trained in part


def test_a_backbone_that_thaws_half_way(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def fit(*ours: Any) -> Tensor:
        class Thaw(pl.callbacks.BaseFinetuning):  # type: ignore[misc]
            def freeze_before_training(self, pl_module: Any) -> None:
                self.freeze(pl_module.net[0])

            def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
                if epoch == 2:
                    self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)

        module = make_module(pl)
        module.configure_optimizers = lambda: torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
        before = module.net[0].weight.detach().clone()
        trainer([Thaw(), *ours], max_epochs=2).fit(module, loader(), loader(rows=16))
        assert torch.equal(module.net[0].weight, before), "frozen weights stay"
        trainer([Thaw(), *ours], max_epochs=4).fit(module, loader(), loader(rows=16))
        assert not torch.equal(module.net[0].weight, before) and clean(module)
        return weights_of(module)

    compared(fit, tmp_path)


def test_an_optimizer_that_holds_a_part_of_the_model(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)
        module.configure_optimizers = lambda: torch.optim.SGD(module.net[2:].parameters(), 0.1)
        before = module.net[0].weight.detach().clone()
        trainer(list(ours)).fit(module, loader(), loader(rows=16))
        assert torch.equal(module.net[0].weight, before), "nobody steps what the user doesn't"
        return weights_of(module)

    compared(fit, tmp_path)


# -- data


def test_loaders_that_end_at_different_times(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    combined = importlib.import_module(f"{pl.__name__}.utilities.combined_loader").CombinedLoader

    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)
        step = type(module).training_step

        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            # None where a loader has come to its end
            return sum(step(self, part, batch_idx) for part in batch.values() if part is not None)

        type(module).training_step = training_step
        trainer(list(ours)).fit(module, combined({"a": loader(), "b": loader(rows=32)}, "max_size"))
        return weights_of(module)

    compared(fit, tmp_path)


def test_a_step_that_draws_its_own_batches(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)

        def training_step(self: Any, dataloader_iter: Iterator[Any]) -> Tensor:
            (x, y), _, _ = next(dataloader_iter)
            return nn.functional.cross_entropy(self.net(x), y)

        type(module).training_step = training_step
        trainer(list(ours)).fit(module, loader())
        return weights_of(module)

    compared(fit, tmp_path)


def test_a_step_without_an_index_and_one_by_keywords(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    def fit(*ours: Any) -> Tensor:
        module = make_module(pl)
        type(module).training_step = lambda self, batch: nn.functional.cross_entropy(self.net(input=batch[0]), batch[1])
        trainer(list(ours)).fit(module, loader())
        return weights_of(module)

    compared(fit, tmp_path)
