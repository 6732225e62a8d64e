"""Automatic optimization: what a step may return, and what Lightning does with it, against the objective written out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from by_hand import RATE, STUDENTS, build_cohort, gradients_of
from tiny import loader, net, weights_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from legibility.lightning_plugins import StudentLegibility
from legibility.lightning_plugins.foundation._recording import Recording
from legibility.losses import forward_kl, reverse_kl
from legibility.students import Cohort

STRENGTH = 0.7
Calls = list[tuple[Tensor, Tensor]]  # what the model read and said
Step = Callable[[nn.ModuleDict, Tensor, Tensor, int], tuple[Any, Calls]]


def parts() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"net": net(), "head": nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))})


def plain(nets: nn.ModuleDict, x: Tensor, y: Tensor, index: int) -> tuple[Any, Calls]:
    h = nets["net"](x)
    return cross_entropy(h, y), [(x, h)]


def a_mapping(nets: nn.ModuleDict, x: Tensor, y: Tensor, index: int) -> tuple[Any, Calls]:
    loss, calls = plain(nets, x, y, index)
    return {"loss": loss, "extra": 1}, calls


def sometimes_none(nets: nn.ModuleDict, x: Tensor, y: Tensor, index: int) -> tuple[Any, Calls]:
    loss, calls = plain(nets, x, y, index)
    return None if index % 3 == 2 else loss, calls


def siamese(nets: nn.ModuleDict, x: Tensor, y: Tensor, index: int) -> tuple[Any, Calls]:
    other = x.flip(0)
    a, b = nets["net"](x), nets["net"](other)
    return cross_entropy(a, y) + (a - b.flip(0)).square().mean(), [(x, a), (other, b)]


def simclr(nets: nn.ModuleDict, x: Tensor, y: Tensor, index: int) -> tuple[Any, Calls]:
    views = (x, x + 0.3 * x.roll(1, 1))
    said = [nets["net"](view) for view in views]
    z = normalize(torch.cat([nets["head"](h) for h in said]), dim=1)
    similar = (z @ z.T / 0.2).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return cross_entropy(similar, torch.arange(len(z)).roll(len(x))), list(zip(views, said, strict=True))


def regression(nets: nn.ModuleDict, x: Tensor, y: Tensor, index: int) -> tuple[Any, Calls]:
    h = nets["net"](x)
    return mse_loss(h, x[:, 5:] * x[:, :5]), [(x, h)]


@dataclass
class Case:
    """One program, the trainer's options for it, and the same options for the loop by hand."""

    step: Step = plain
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    accumulate: int = 1
    clip: Callable[[Any], Any] | None = None
    autocast: torch.dtype | None = None
    weights: torch.dtype = torch.float32
    scale: float | None = None
    values: bool = False

    @property
    def exact(self) -> bool:
        return self.autocast is None and self.weights == torch.float32


def by_value(parameters: Any) -> None:
    nn.utils.clip_grad_value_(parameters, 0.01)


def by_norm(parameters: Any) -> None:
    nn.utils.clip_grad_norm_(parameters, 0.05)


VALUE = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
NORM = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "norm"}
CASES = {
    "clipping by value": Case(options=VALUE, clip=by_value),
    "clipping by norm, short last group": Case(
        options={**NORM, "accumulate_grad_batches": 5}, clip=by_norm, accumulate=5
    ),
    "a mapping, short last group": Case(a_mapping, {"accumulate_grad_batches": 5}, accumulate=5),
    "None": Case(sometimes_none),
    "siamese": Case(siamese),
    "siamese, short last group": Case(siamese, {"accumulate_grad_batches": 3}, accumulate=3),
    "SimCLR": Case(simclr, values=True),
    "regression": Case(regression, values=True),
    "LBFGS": Case(optimizer="lbfgs"),
    "bf16-mixed": Case(siamese, {"precision": "bf16-mixed"}, autocast=torch.bfloat16),
    "bf16-true": Case(options={"precision": "bf16-true"}, weights=torch.bfloat16),
    "16-mixed with a scaler": Case(autocast=torch.float16, scale=2.0**12),
    "16-mixed with a scaler, clipped, accumulated": Case(
        siamese, {**NORM, "accumulate_grad_batches": 3}, clip=by_norm, accumulate=3, autocast=torch.float16, scale=2.0**12
    ),
    "16-mixed, the first steps overflow": Case(autocast=torch.float16, scale=2.0**24),
}  # fmt: skip


def make_optimizer(case: Case, parameters: Any) -> torch.optim.Optimizer:
    if case.optimizer == "lbfgs":
        return torch.optim.LBFGS(parameters, lr=0.05, max_iter=2)
    return torch.optim.SGD(parameters, lr=0.1)


def divergence(h: Tensor, o: Tensor, values: bool) -> Tensor:
    if not values:
        return (forward_kl(h, o).mean() + reverse_kl(h, o).mean()) / 2
    variance = h.detach().var(0, unbiased=False)
    return ((h - o).square() / (variance + 1e-6 * variance.mean() + 1e-12)).mean()


def written_out(case: Case, batches: list[Any]) -> tuple[nn.ModuleDict, list[list[Tensor]], Cohort]:
    """The objective with every term through autograd from the task's own graph."""
    nets = parts().to(case.weights)
    optimizer = make_optimizer(case, nets.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=case.scale or 1.0, enabled=case.scale is not None)
    cohort: Cohort | None = None
    seen: list[list[Tensor]] = []
    for index, (x, y) in enumerate(batches):
        x = x.to(case.weights)
        learned = False

        def objective() -> Tensor | None:
            nonlocal cohort, learned
            with torch.autocast("cpu", case.autocast, enabled=case.autocast is not None):
                result, calls = case.step(nets, x, y, index)  # noqa: B023
            task = result["loss"] if isinstance(result, dict) else result
            if cohort is None:
                (read, h), *_ = calls
                cohort = build_cohort(
                    Recording((read,), {}, read, None, h), (x, y), nets["net"], students=list(STUDENTS),  # noqa: B023
                    imitate="values" if case.values else "distribution", budget=0.1, learning_rate=RATE, seed=0,
                    on_failure="drop",
                ).cohort  # fmt: skip
            terms = []
            for read, h in calls:
                predictions = cohort.predict(read, None)
                for name, prediction in predictions:
                    if cohort.active[name]:
                        terms.append(divergence(h.float(), prediction.output.detach(), case.values))
                if not learned:
                    cohort.learn(predictions, h.detach().float(), {}, None, scale=1 / (len(calls) * case.accumulate))
            learned = True
            if task is None:
                return None
            term = sum(terms, torch.zeros(())) / (len(calls) * len(STUDENTS))
            total: Tensor = (task + (STRENGTH * term).to(task.dtype)) / case.accumulate
            return total

        def closure() -> Tensor | None:
            if case.accumulate == 1:
                optimizer.zero_grad()
            total = objective()
            if total is not None:
                scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            return total

        last = (index + 1) % case.accumulate == 0 or index + 1 == len(batches)
        if case.optimizer == "lbfgs":

            def watched() -> Any:
                total = closure()
                seen.append(gradients_of(optimizer))
                return total

            optimizer.step(watched)
            assert cohort is not None
            cohort.step()
            continue
        total = closure()
        if last:
            if total is not None:
                scaler.unscale_(optimizer)
            seen.append(gradients_of(optimizer))
            if case.clip is not None:
                case.clip(nets.parameters())
            if total is not None:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            assert cohort is not None
            cohort.step()
    assert cohort is not None
    return nets, seen, cohort


def make(pl: Any, case: Case) -> Any:
    class Automatic(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.nets = parts()
            self.seen: list[list[Tensor]] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return case.step(self.nets, batch[0], batch[1], batch_idx)[0]

        def configure_optimizers(self) -> Any:
            return make_optimizer(case, self.parameters())

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.seen.append(gradients_of(optimizer))

    return Automatic()


def options_of(pl: Any, case: Case) -> dict[str, Any]:
    if case.scale is None:
        return case.options
    precision = importlib.import_module(f"{pl.__name__}.plugins.precision")
    scaler = torch.amp.GradScaler("cpu", init_scale=case.scale)
    return {**case.options, "plugins": [precision.MixedPrecision("16-mixed", "cpu", scaler)]}


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_a_loop_written_by_hand(pl: Any, trainer: Callable[..., Any], name: str) -> None:
    case = CASES[name]
    batches = list(loader(rows=32 * 8))
    nets, seen, cohort = written_out(case, batches)
    plugin = StudentLegibility(
        STRENGTH, students=STUDENTS, model="nets.net", imitate="values" if case.values else "distribution",
        warmup=0.0, learning_rate=RATE, summary=False,
    )  # fmt: skip
    module = make(pl, case)
    trainer(plugin, **options_of(pl, case)).fit(module, loader(rows=32 * 8))
    assert len(module.seen) == len(seen)
    for ours, theirs in zip(module.seen, seen, strict=True):
        assert len(ours) == len(theirs)
        if case.exact:
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4 * float(b.abs().max()))
        elif ours:
            # In half precision single numbers differ by cancellation; the gradient as a whole must not.
            one, other = (torch.cat([g.flatten().float() for g in grads]) for grads in (ours, theirs))
            assert torch.isfinite(one).all() == torch.isfinite(other).all()
            if torch.isfinite(other).all():
                assert (one - other).norm() <= 3e-2 * other.norm()
    tolerance = 2e-4 if case.exact else 3e-2
    torch.testing.assert_close(weights_of(module.nets), weights_of(nets), rtol=tolerance, atol=tolerance * 1e-1)
    assert plugin.built is not None
    if case.exact:
        for student, network in plugin.built.cohort.networks.items():
            torch.testing.assert_close(weights_of(network), weights_of(cohort.networks[student]), rtol=2e-4, atol=1e-4)
    # The term must have mattered, or the test could not fail.
    assert any(plugin.built.cohort.active.values()) and torch.isfinite(weights_of(module.nets)).all()
    bare = make(pl, case)
    trainer(**options_of(pl, case)).fit(bare, loader(rows=32 * 8))
    assert not torch.allclose(weights_of(bare.nets["net"]), weights_of(module.nets["net"]), rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["clipping by norm, short last group", "siamese"])
@pytest.mark.parametrize("half", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_on_a_gpu(pl: Any, trainer: Callable[..., Any], name: str, half: str) -> None:
    case = CASES[name]
    precision = importlib.import_module(f"{pl.__name__}.plugins.precision")
    # A scale from which no step overflows: gradients can be compared one by one.
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8) if half == "16-mixed" else None
    plugin = StudentLegibility(
        STRENGTH, students=STUDENTS, model="nets.net", warmup=0.0, learning_rate=RATE, summary=False
    )
    module = make(pl, case)
    plugins = [precision.MixedPrecision(half, "cuda", scaler)]
    trainer(plugin, **{**case.options, "accelerator": "gpu", "plugins": plugins}).fit(module, loader(rows=32 * 8))
    _, seen, _ = written_out(case, list(loader(rows=32 * 8)))
    assert len(module.seen) == len(seen)
    for ours, theirs in zip(module.seen, seen, strict=True):
        one, other = (torch.cat([g.flatten().float().cpu() for g in grads]) for grads in (ours, theirs))
        assert (one - other).norm() <= 5e-2 * other.norm()
