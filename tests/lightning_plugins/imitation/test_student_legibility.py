"""StudentLegibility: gradients of a hand-written loop, no trace at strength 0, exact resume, clear errors."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import build_cohort
from tiny import loader, make_module, net, weights_of
from torch import Tensor, nn

from legibility.lightning_plugins import StudentLegibility
from legibility.lightning_plugins.foundation._recording import Recording
from legibility.losses import forward_kl, reverse_kl
from legibility.students import Cohort, MLPStudent, load_student

STUDENTS = [MLPStudent(width=16, depth=1), MLPStudent(width=8, depth=2)]


def callback(strength: float = 0.7, **options: Any) -> StudentLegibility:
    return StudentLegibility(strength, **{"students": STUDENTS, "warmup": 0.0, "summary": False, **options})


def same_cohort(model: nn.Module, x: Tensor, y: Tensor) -> Cohort:
    """The cohort that the callback builds from its first batch."""
    recording = Recording((x,), {}, x, None, model(x))
    return build_cohort(
        recording, (x, y), model, students=list(STUDENTS), imitate="auto", budget=0.1, learning_rate=3e-3, seed=0,
        on_failure="drop",
    ).cohort  # fmt: skip


def by_hand(
    batches: list[tuple[Tensor, Tensor]],
    *,
    strength: float = 0.7,
    accumulate: int = 1,
    clip: float | None = None,
    warmup_steps: int = 0,
    bf16: bool = False,
    direction: str = "symmetric",
) -> tuple[nn.Module, list[list[Tensor]], Cohort]:
    """The objective written out: every KL through autograd from the task's own graph, no injector, no recorder."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cohort: Cohort | None = None
    seen, step = [], 0
    for index, (x, y) in enumerate(batches):
        cast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        with cast:
            h = model(x)
            loss = nn.functional.cross_entropy(h, y)
        if cohort is None:
            cohort = same_cohort(model, x, y)
        predictions = cohort.predict(x, None)
        terms = []
        for name, prediction in predictions:
            o = prediction.output.detach()
            both = {"forward": forward_kl(h.float(), o), "reverse": reverse_kl(h.float(), o)}
            both["symmetric"] = (both["forward"] + both["reverse"]) / 2
            terms.append(both[direction].mean() if cohort.active[name] else torch.zeros(()))
        rate = strength * min(1.0, (step + 1) / warmup_steps) if warmup_steps else strength
        ((loss + rate * sum(terms) / len(terms)) / accumulate).backward()  # type: ignore[no-untyped-call]
        cohort.learn(predictions, h.detach().float(), {}, None, scale=1 / accumulate)
        if (index + 1) % accumulate == 0 or index + 1 == len(batches):
            seen.append([p.grad.detach().clone() for p in model.parameters() if p.grad is not None])
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            cohort.step()
            step += 1
    assert cohort is not None
    return model, seen, cohort


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], float]] = {
    # name: (options of the loop by hand, of the trainer, of the callback, relative tolerance)
    "plain": ({}, {}, {}, 2e-4),
    "forward": ({"direction": "forward"}, {}, {"direction": "forward"}, 2e-4),
    "reverse": ({"direction": "reverse"}, {}, {"direction": "reverse"}, 2e-4),
    "accumulation with a short last group": ({"accumulate": 3}, {"accumulate_grad_batches": 3}, {}, 2e-4),
    "clipping": ({"clip": 0.05}, {"gradient_clip_val": 0.05}, {}, 2e-4),
    "warm-up": ({"warmup_steps": 16}, {}, {"warmup": 0.5}, 2e-4),
    "bf16": ({"bf16": True}, {"precision": "bf16-mixed"}, {}, 5e-2),
}


@pytest.mark.parametrize("returns", ["tensor", "dict"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_a_loop_written_by_hand(pl: Any, trainer: Callable[..., Any], case: str, returns: str) -> None:
    hand, options, ours, tolerance = CASES[case]
    batches = list(loader(rows=256))
    model, seen, cohort = by_hand(batches, **hand)
    module = make_module(pl, returns=returns)
    plugin = callback(**ours)
    trainer(plugin, **options).fit(module, loader(rows=256))
    assert len(module.seen) == len(seen)
    for ours_now, theirs in zip(module.seen, seen, strict=True):
        for a, b in zip(ours_now, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 1e-2)
    torch.testing.assert_close(weights_of(module.net), weights_of(model), rtol=tolerance, atol=tolerance * 1e-2)
    assert plugin.built is not None
    for name, network in plugin.built.cohort.networks.items():
        torch.testing.assert_close(weights_of(network), weights_of(cohort.networks[name]), rtol=tolerance, atol=1e-3)
    # The term must have mattered, or the test could not fail.
    bare = make_module(pl)
    trainer(**options).fit(bare, loader(rows=256))
    assert not torch.allclose(weights_of(bare), weights_of(module), rtol=1e-3)


def test_strength_zero_is_no_callback_bit_for_bit(pl: Any, trainer: Callable[..., Any]) -> None:
    bare, watched = make_module(pl), make_module(pl)
    for module in (bare, watched):
        module.net.insert(1, nn.Dropout(0.5))
        module.net.insert(2, nn.BatchNorm1d(64))
    torch.manual_seed(3)
    trainer(max_epochs=2).fit(bare, loader(shuffle=True), loader())
    torch.manual_seed(3)
    plugin = callback(0.0, taps="net.0")
    trainer(plugin, max_epochs=2).fit(watched, loader(shuffle=True), loader())
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert plugin.built is not None and all(plugin.built.cohort.active.values()), "the students have learnt something"


@pytest.mark.parametrize("strength", [0.0, 0.5])
@pytest.mark.parametrize("options", [{"taps": "nowhere"}, {"output": "nowhere"}])
def test_what_can_not_be_found_is_an_error_at_strength_zero_too_and_says_why(
    pl: Any, trainer: Callable[..., Any], strength: float, options: dict[str, str]
) -> None:
    module = make_module(pl)
    before = weights_of(module)
    with pytest.raises(ValueError, match="nowhere") as caught:
        trainer(callback(strength, **options)).fit(module, loader())
    assert ("At `strength` 0 the students still train, to be measured" in str(caught.value)) == (strength == 0)
    assert torch.equal(weights_of(module), before)


def test_the_users_log_stays_the_pure_task_loss(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    fit = trainer(callback(), log_every_n_steps=1)
    fit.fit(module, loader())
    x, y = list(loader())[-1]
    logged = fit.callback_metrics
    assert {"legibility/term", "legibility/strength", "legibility/entropy"} <= set(logged)
    assert {"legibility/student/mlp/imitation", "legibility/student/mlp_2/disagreement"} <= set(logged)
    # Recompute the last batch's task loss from the weights before the last step.
    before = make_module(pl)
    trainer(callback(), max_steps=7).fit(before, loader())
    expected = nn.functional.cross_entropy(before.net(x), y)
    torch.testing.assert_close(logged["task"], expected.detach(), rtol=1e-4, atol=1e-6)


def test_students_are_nowhere_in_the_primary_and_nothing_is_left(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    module, bare = make_module(pl), make_module(pl)
    names, attributes = list(bare.state_dict()), set(vars(bare))
    inside: list[Any] = []

    class Look(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            inside.append(list(pl_module.state_dict()) == names)
            held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
            inside.append(held == {id(p) for p in pl_module.parameters()})

    fit = trainer([callback(taps="net.*"), Look()])
    fit.fit(module, loader())
    assert inside and all(inside)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == names
    make_module(pl).load_state_dict(saved["state_dict"])
    _is_clean(module, attributes)


def _is_clean(module: nn.Module, attributes: set[str]) -> None:
    assert "training_step" not in vars(module)
    # Lightning itself adds the last three in any fit.
    assert set(vars(module)) <= attributes | {"_trainer", "_fabric", "_hparams"}
    for inner in module.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks"):
            assert not getattr(inner, hooks)
    copy.deepcopy(module.net)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["step", "after"])
def test_nothing_is_left_after_an_exception(
    pl: Any, trainer: Callable[..., Any], error: type[BaseException], where: str
) -> None:
    module = make_module(pl)
    attributes = set(vars(module))

    class Boom(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if where == "after" and batch_idx == 3:
                raise error("boom")

    if where == "step":
        module.net.register_forward_hook(lambda *_: (_ for _ in ()).throw(error("boom")) if module.seen else None)
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        trainer([callback(taps="net.0"), Boom()]).fit(module, loader())
    module.net._forward_hooks.clear()
    _is_clean(module, attributes)
    module.seen = [] if where == "step" else module.seen
    trainer(callback()).fit(module, loader())


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_equals_uninterrupted(pl: Any, trainer: Callable[..., Any], tmp_path: Path, stop: int) -> None:
    def plugin() -> StudentLegibility:
        return callback(warmup=0.5, taps="net.0")

    class StopEarly(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch + 1 == stop:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole, resumed = make_module(pl, optimizer="adamw"), make_module(pl, optimizer="adamw")
    first = plugin()
    trainer([first, StopEarly()], max_epochs=4).fit(whole, loader())
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    second = plugin()
    trainer(second, max_epochs=4).fit(resumed, loader(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert first.built is not None and second.built is not None
    for name, network in first.built.cohort.networks.items():
        assert torch.equal(weights_of(network), weights_of(second.built.cohort.networks[name]))


def test_a_second_fit_goes_on_with_the_same_students(pl: Any, trainer: Callable[..., Any]) -> None:
    module, plugin = make_module(pl), callback()
    trainer(plugin).fit(module, loader())
    assert plugin.built is not None
    cohort = plugin.built.cohort
    before = weights_of(cohort.networks["mlp"]).clone()
    trainer(plugin).fit(module, loader())
    assert plugin.built.cohort is cohort and not torch.equal(before, weights_of(cohort.networks["mlp"]))
    trainer(plugin).fit(make_module(pl), loader())
    assert plugin.built.cohort is not cohort, "another module has other students"


def test_students_are_kept_as_safetensors(module: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    plugin = callback()
    with pytest.raises(RuntimeError, match="no students yet"):
        plugin.save_students(tmp_path)
    trainer(plugin).fit(module, loader())
    files = plugin.save_students(tmp_path / "students")
    assert [file.name for file in files] == ["mlp.safetensors", "mlp_2.safetensors"]
    assert plugin.built is not None
    x = torch.randn(4, 10)
    for file, network in zip(files, plugin.built.cohort.networks.values(), strict=True):
        assert torch.equal(load_student(file).network(x).output, network(x).output)


def test_a_model_with_several_tasks_is_imitated_in_the_first_ones_kind(
    module: Any, trainer: Callable[..., Any]
) -> None:
    module.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 5))

    def step(batch: Any, batch_idx: int) -> Any:
        x, y = batch
        first = nn.functional.cross_entropy(module.net(x), y)
        return first + module.net(x[:, None, :].expand(-1, 3, -1)).square().mean()

    module.training_step = step
    plugin = callback()
    with pytest.warns(UserWarning, match="leaves out calls of the model with input \\(8, 3, 10\\)"):
        trainer(plugin).fit(module, loader())
    assert plugin.built is not None and plugin.built.cohort.networks.keys() == {"mlp", "mlp_2"}


def test_a_failing_student_never_harms_the_primary(pl: Any, trainer: Callable[..., Any]) -> None:
    module, plugin = make_module(pl), callback()

    class Poison(pl.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                assert plugin.built is not None
                with torch.no_grad():
                    next(plugin.built.cohort.networks["mlp"].parameters()).fill_(float("nan"))

    with pytest.warns(UserWarning, match="mlp is dropped"):
        trainer([plugin, Poison()]).fit(module, loader())
    assert torch.isfinite(weights_of(module)).all()
    assert plugin.built is not None
    assert (
        "mlp" in plugin.built.cohort.failed and torch.isfinite(weights_of(plugin.built.cohort.networks["mlp_2"])).all()
    )


def test_with_no_argument_it_does_something_sensible(
    pl: Any, trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    module, plugin = make_module(pl), StudentLegibility()
    trainer(plugin).fit(module, loader())
    printed = capsys.readouterr().out
    assert "net (Sequential" in printed and "features (10,)" in printed and "5 outputs" in printed
    assert plugin.built is not None and len(plugin.built.cohort.networks) == 2
    assert plugin.built.kind == "distribution"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": -0.1}, ValueError, "`strength`.*-0.1"),
        ({"strength": float("nan")}, ValueError, "`strength`.*nan"),
        ({"strength": "much"}, TypeError, "`strength`.*'much'"),
        ({"students": []}, ValueError, "`students` is empty"),
        ({"students": "many"}, ValueError, "`students`.*'many'"),
        ({"direction": "sideways"}, ValueError, "`direction`.*sideways"),
        ({"warmup": 1.0}, ValueError, "`warmup`"),
        ({"budget": 0.0}, ValueError, "`budget`"),
        ({"students": [MLPStudent]}, TypeError, r"`students` must .* got the class MLPStudent: write `MLPStudent\(\)`"),
        ({"students": MLPStudent()}, TypeError, "`students` must"),
        ({"seed": "a"}, TypeError, "`seed` must be a whole number, got 'a'"),
        ({"on_failure": "rais"}, ValueError, "`on_failure` must be one of 'drop', 'raise', got 'rais'"),
        ({"warmup": "0.2"}, TypeError, r"`warmup` must be a share in \[0, 1\), got '0.2'"),
        ({"warmup": 20}, ValueError, r"`warmup` must be a share in \[0, 1\), got 20: for 20 % give 0.2"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StudentLegibility(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": "net.layers.*"}, "`taps` pattern 'net.layers.*'.*Near: net"),
        ({"model": "nett"}, "`model` pattern 'nett'.*Near: net"),
        ({"output": "logits"}, "`output` = 'logits'"),
        ({"students": [MLPStudent(width=512)]}, "smaller than the primary.*`mlp` of width 512"),
    ],
)
def test_what_cannot_work_stops_before_the_first_step(
    module: Any, trainer: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    before = weights_of(module)
    attributes = set(vars(module))
    with pytest.raises(ValueError, match=message):
        trainer(callback(**options)).fit(module, loader())
    assert torch.equal(before, weights_of(module))
    _is_clean(module, attributes)


def test_an_integer_output_is_refused(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)

    class Classes(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.inner(x)
            return logits, logits.argmax(-1)

    module.net = Classes(module.net)
    module.training_step = lambda batch, batch_idx: nn.functional.cross_entropy(module.net(batch[0])[0], batch[1])
    with pytest.raises(TypeError, match="`output`.*torch.int64"):
        trainer(callback(output="1")).fit(module, loader())
    trainer(callback(output="0")).fit(module, loader())


def test_regression_imitates_values(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    module.training_step = lambda batch, batch_idx: module.net(batch[0]).square().mean()
    data: Any = [(torch.randn(8, 10),) for _ in range(8)]
    plugin = callback()
    trainer(plugin).fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    assert plugin.built is not None and plugin.built.kind == "values"
    assert torch.isfinite(weights_of(module)).all()


def test_it_trains_in_a_quiet_and_warning_free_way(module: Any, trainer: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*validation_step.*")
        trainer(callback(), log_every_n_steps=4).fit(module, loader())
