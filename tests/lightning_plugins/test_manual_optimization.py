"""Manual optimization: gradients of a hand-written loop in every order of backward passes, and nothing left behind."""

import copy
import functools
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import RATE, STUDENTS, Program, Runner, WrittenOut, make_manual
from manual_programs import GANS, ONE_MODEL, accumulated, detached, is_real, plain, toggled
from tiny import loader, weights_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from legibility.lightning_plugins import StudentLegibility

BATCHES = 24
STRENGTH = 0.7


def data() -> Any:
    return loader(rows=BATCHES * 8)


def plugin(primary: str, strength: float = STRENGTH, **options: Any) -> StudentLegibility:
    fixed: dict[str, Any] = {
        "students": STUDENTS, "model": f"nets.{primary}", "imitate": "distribution", "warmup": 0.0,
        "learning_rate": RATE, "summary": False,
    }  # fmt: skip
    return StudentLegibility(strength, **{**fixed, **options})


CASES = [(name, program, optimizers, "net") for name, (program, optimizers) in ONE_MODEL.items()]
CASES += [(f"GAN {name}", program, ["g", "d"], primary) for name, program in GANS.items() for primary in ("g", "d")]


def same(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-6)


def alike(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> None:
    """In half precision single numbers differ by cancellation; the gradients as a whole must not."""
    for a, b in zip(ours, theirs, strict=True):
        one, other = torch.cat([g.flatten() for g in a]), torch.cat([g.flatten() for g in b])
        assert bool(torch.isfinite(one).all()) == bool(torch.isfinite(other).all())
        assert not torch.isfinite(other).all() or (one - other).norm() <= 2e-2 * other.norm()


@functools.cache
def written_out(primary: str, program: Program, *optimizers: str) -> WrittenOut:
    """The same for both namespaces."""
    loop = WrittenOut(primary, optimizers, STRENGTH)
    loop.run(program, list(data()))
    return loop


@functools.cache
def alone(namespace: Any, program: Program, *optimizers: str) -> Any:
    """What no callback of ours has touched: the same whichever model would be the primary."""
    quiet = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, "enable_progress_bar": False}
    module = make_manual(namespace, program, optimizers)
    namespace.Trainer(logger=False, enable_model_summary=False, **quiet).fit(module, data())
    return module.nets


@pytest.mark.filterwarnings("ignore:StudentLegibility. gradients are accumulated")
@pytest.mark.parametrize(("name", "program", "optimizers", "primary"), CASES, ids=[f"{c[0]} ({c[3]})" for c in CASES])
def test_gradients_equal_a_loop_written_by_hand(
    pl: Any, trainer: Callable[..., Any], name: str, program: Program, optimizers: list[str], primary: str
) -> None:
    expected = written_out(primary, program, *optimizers)
    module, callback = make_manual(pl, program, optimizers), plugin(primary)
    trainer(callback).fit(module, data())
    same(module.seen, expected.seen)
    torch.testing.assert_close(weights_of(module.nets), weights_of(expected.nets), rtol=2e-4, atol=2e-6)
    assert callback.built is not None and expected.cohort is not None
    for student, network in callback.built.cohort.networks.items():
        torch.testing.assert_close(
            weights_of(network), weights_of(expected.cohort.networks[student]), rtol=2e-4, atol=1e-4
        )
    # The term must have mattered, or the test could not fail.
    assert any(callback.built.cohort.active.values())
    bare = alone(pl, program, *optimizers)[primary]
    assert not torch.allclose(weights_of(bare), weights_of(module.nets[primary]), rtol=1e-3)


def test_bf16_mixed(pl: Any, trainer: Callable[..., Any]) -> None:
    expected = WrittenOut("net", ["net"], STRENGTH)
    expected.run(plain, list(data()), dtype=torch.bfloat16)
    module = make_manual(pl, plain, ["net"])
    trainer(plugin("net"), precision="bf16-mixed").fit(module, data())
    alike(module.seen, expected.seen)


@pytest.mark.parametrize("scale", [2.0**12, 2.0**24])  # the second one overflows and skips steps
def test_float16_with_a_scaler(pl: Any, trainer: Callable[..., Any], scale: float) -> None:
    precision = importlib.import_module(f"{pl.__name__}.plugins.precision")
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for _ in range(2)]
    expected = WrittenOut("net", ["net"], STRENGTH, scaler=scalers[0])
    expected.run(plain, list(data()), dtype=torch.float16)
    module = make_manual(pl, plain, ["net"])
    callback = plugin("net")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer(callback, plugins=[precision.MixedPrecision("16-mixed", "cpu", scalers[1])]).fit(module, data())
    assert messages(found) == [] and scalers[0].get_scale() == scalers[1].get_scale()
    alike(module.seen, expected.seen)
    assert callback.built is not None and any(callback.built.cohort.active.values())


@pytest.mark.parametrize("case", ["one optimizer", "GAN toggled"])
def test_strength_zero_is_no_callback_bit_for_bit(pl: Any, trainer: Callable[..., Any], case: str) -> None:
    program, optimizers, primary = next((p, o, m) for name, p, o, m in CASES if name == case)
    bare, watched = make_manual(pl, program, optimizers), make_manual(pl, program, optimizers)
    for module in (bare, watched):
        module.nets["net"].insert(1, torch.nn.Dropout(0.5))
    for module, callbacks in ((bare, []), (watched, [plugin(primary, 0.0)])):
        torch.manual_seed(3)
        trainer(callbacks, max_epochs=2).fit(module, loader(shuffle=True))
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def is_clean(module: Any, attributes: set[str]) -> None:
    assert {"training_step", "manual_backward"}.isdisjoint(vars(module))
    assert set(vars(module)) <= attributes | {"_trainer", "_fabric", "_hparams", "_param_requires_grad_state"}
    for inner in module.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            assert not getattr(inner, hooks)
    copy.deepcopy(module.nets)


def test_nothing_is_left_after_a_fit(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_manual(pl, toggled, ["g", "d"])
    attributes = set(vars(module))
    fit = trainer(plugin("g", taps="nets.g.0"))
    fit.fit(module, data())
    is_clean(module, attributes)
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in fit.optimizers)


@pytest.mark.parametrize("where", ["in the step", "in the backward pass", "after"])
def test_nothing_is_left_after_an_exception(pl: Any, trainer: Callable[..., Any], where: str) -> None:
    optimizers: list[Any] = []

    class Boom(pl.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            optimizers.extend(trainer.optimizers)

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if where == "in the backward pass":
                raise RuntimeError("boom")

        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("boom")

    def program(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
        plain(run, x, y, index)
        if where == "in the step":
            raise RuntimeError("boom")

    module = make_manual(pl, program, ["net"])
    attributes = set(vars(module))
    with pytest.raises(RuntimeError, match="boom"):
        trainer([plugin("net"), Boom()]).fit(module, data())
    is_clean(module, attributes)
    assert optimizers and not any(optimizer._optimizer_step_post_hooks for optimizer in optimizers)


@pytest.mark.parametrize("case", ["one optimizer", "GAN one generator call reused, attached"])
def test_resume_equals_uninterrupted(pl: Any, trainer: Callable[..., Any], tmp_path: Path, case: str) -> None:
    program, optimizers, primary = next((p, o, m) for name, p, o, m in CASES if name == case)

    class Save(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole, resumed = make_manual(pl, program, optimizers), make_manual(pl, program, optimizers)
    first, second = plugin(primary, warmup=0.8), plugin(primary, warmup=0.8)
    trainer([first, Save()], max_epochs=4).fit(whole, data())
    trainer(second, max_epochs=4).fit(resumed, data(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert first.built is not None and second.built is not None
    for name, network in first.built.cohort.networks.items():
        assert torch.equal(weights_of(network), weights_of(second.built.cohort.networks[name]))


@pytest.mark.parametrize("case", ["one optimizer", "GAN detached"])
def test_steps_are_batches_for_warm_up_and_log(pl: Any, trainer: Callable[..., Any], case: str) -> None:
    program, optimizers, primary = next((p, o, m) for name, p, o, m in CASES if name == case)
    strengths = []

    class Look(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            strengths.append(float(trainer.callback_metrics["legibility/strength"]))

    module = make_manual(pl, program, optimizers)
    fit = trainer([plugin(primary, warmup=0.5), Look()], log_every_n_steps=1)
    fit.fit(module, data())
    assert fit.global_step == BATCHES * len(optimizers)
    # Half of the 24 batches, whatever number of optimizers steps in each.
    expected = [STRENGTH * min(1.0, (batch + 1) / 12) for batch in range(BATCHES)]
    torch.testing.assert_close(torch.tensor(strengths), torch.tensor(expected))


def test_max_steps_counts_every_optimizer(pl: Any, trainer: Callable[..., Any]) -> None:
    callback = plugin("g", warmup=0.5)
    trainer(callback, max_epochs=-1, max_steps=16).fit(make_manual(pl, detached, ["g", "d"]), data())
    # 16 steps of two optimizers are 8 batches, and half of them 4.
    assert [callback.strength_at(batch) for batch in (0, 3)] == [STRENGTH / 4, STRENGTH]


def test_students_step_only_in_batches_in_which_the_primary_did(pl: Any, trainer: Callable[..., Any]) -> None:
    def program(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
        made = run.call("g", x)
        true, fake = run.call("d", x[:, :5]), run.call("d", made.detach())
        run.zero_grad(1)
        run.backward(is_real(true, True) + is_real(fake, False), {})
        run.step(1)
        if index % 2 == 1:
            judged = run.call("d", made)
            run.zero_grad(0)
            run.backward(is_real(judged, True), {"g": [made]})
            run.step(0)

    counts: list[int] = []

    class Count(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any) -> None:
            assert callback.built is not None
            state = callback.built.cohort.state_dict()["optimizer"]["state"]
            counts.append(int(state[0]["step"]) if state else 0)

    callback = plugin("g")
    module = make_manual(pl, program, ["g", "d"])
    trainer([callback, Count()]).fit(module, data())
    assert counts == [(batch + 1) // 2 for batch in range(BATCHES)]
    expected = WrittenOut("g", ["g", "d"], STRENGTH)
    expected.run(program, list(data()))
    same(module.seen, expected.seen)


def test_a_second_fit_goes_on_with_the_same_students(pl: Any, trainer: Callable[..., Any]) -> None:
    module, callback = make_manual(pl, plain, ["net"]), plugin("net")
    trainer(callback).fit(module, data())
    assert callback.built is not None
    cohort = callback.built.cohort
    before = weights_of(cohort.networks["mlp"]).clone()
    trainer(callback).fit(module, data())
    assert callback.built.cohort is cohort and not torch.equal(before, weights_of(cohort.networks["mlp"]))


def test_two_callbacks_share_a_gan(pl: Any, trainer: Callable[..., Any]) -> None:
    """Each adds its own term: the generator's gradients hold both, the discriminator's only its own."""
    alone, both = make_manual(pl, toggled, ["g", "d"]), make_manual(pl, toggled, ["g", "d"])
    trainer(plugin("d")).fit(alone, data())
    trainer([plugin("g"), plugin("d")]).fit(both, data())
    assert not torch.allclose(weights_of(alone.nets["g"]), weights_of(both.nets["g"]), rtol=1e-3)
    assert torch.isfinite(weights_of(both)).all()
    assert {"training_step", "manual_backward"}.isdisjoint(vars(both))


def messages(found: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in found if "StudentLegibility" in str(warning.message)]


@pytest.mark.parametrize("strength", [STRENGTH, 0.0])
def test_raw_backward_is_warned_of_once(pl: Any, trainer: Callable[..., Any], strength: float) -> None:
    def program(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
        run.zero_grad(0)
        cross_entropy(run.call("net", x), y).backward()  # type: ignore[no-untyped-call]
        run.step(0)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer(plugin("net", strength)).fit(make_manual(pl, program, ["net"]), data())
    if strength:
        (message,) = messages(found)
        assert "self.manual_backward(loss)" in message and "loss.backward()" in message
    else:
        assert messages(found) == []


def test_accumulation_by_hand_is_pointed_out_once(pl: Any, trainer: Callable[..., Any]) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer(plugin("net")).fit(make_manual(pl, accumulated, ["net"]), data())
    (message,) = messages(found)
    assert "divide `strength` by it too" in message


def test_a_term_that_found_no_loss_is_pointed_out(pl: Any, trainer: Callable[..., Any]) -> None:
    def program(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
        run.call("net", x)
        run.zero_grad(0)
        run.backward(cross_entropy(run.call("g", x), y), {})
        run.step(0)
        run.step(1)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer(plugin("net")).fit(make_manual(pl, program, ["g", "net"]), data())
    (message,) = messages(found)
    assert "'nets.net'" in message and "never added" in message and "`model=`" in message


def test_ordinary_programs_are_not_warned_of(pl: Any, trainer: Callable[..., Any]) -> None:
    for program, optimizers, primary in ((plain, ["net"], "net"), (toggled, ["g", "d"], "g")):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            trainer(plugin(primary)).fit(make_manual(pl, program, optimizers), data())
        assert messages(found) == []


def test_a_loss_of_several_elements_is_refused_in_a_sentence(pl: Any, trainer: Callable[..., Any]) -> None:
    def program(run: Runner, x: Tensor, y: Tensor, index: int) -> None:
        loss = cross_entropy(run.call("net", x), y, reduction="none")
        run.zero_grad(0)
        run.backward(loss, {}, gradient=torch.ones_like(loss))
        run.step(0)

    trainer(plugin("net", 0.0)).fit(make_manual(pl, program, ["net"]), data())
    module = make_manual(pl, program, ["net"])
    with pytest.raises(ValueError, match=r"`loss` given to `manual_backward` must have one element.*\(8,\).*loss.mean"):
        trainer(plugin("net")).fit(module, data())
    assert module.seen == []  # before the first step
