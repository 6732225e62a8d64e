"""Programs that step by hand, each run twice: by Lightning with our callback, and as the objective written out.

A program is a function of a runner and a batch. Beside each backward pass it says which calls of which primary the
term belongs to there; only the runner without Lightning reads that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._recording import Recording
from legibility.lightning_plugins.imitation._build_cohort import BuiltCohort
from legibility.lightning_plugins.imitation._plan import plan_cohort
from legibility.losses import forward_kl, reverse_kl
from legibility.students import Cohort, MLPStudent, Student

STUDENTS = [MLPStudent(width=16, depth=1), MLPStudent(width=8, depth=2)]
RATE = 1e-2  # fast enough that the students count for most of a short fit
Owed = Mapping[str, Sequence[Tensor]]


def build_cohort(
    recording: Recording,
    batch: Any,
    primary: nn.Module,
    *,
    students: list[Student],
    imitate: Any,
    budget: float,
    learning_rate: float,
    seed: int,
    on_failure: Any,
) -> BuiltCohort:
    """The students that the callback builds in one process."""
    plan = plan_cohort(recording, batch, primary, students=students, imitate=imitate, budget=budget)
    cohort = Cohort(
        students, plan.signature, widths=plan.widths, seed=seed, learning_rate=learning_rate, kind=plan.kind,
        on_failure=on_failure,
    )  # fmt: skip
    return BuiltCohort(cohort, plan)


def parts() -> nn.ModuleDict:
    """A classifier `net`, a generator `g` and a discriminator `d`."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "net": nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5)),
            "g": nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5)),
            "d": nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)),
        }
    )


def optimizers_of(nets: nn.ModuleDict, names: Sequence[str]) -> list[torch.optim.Optimizer]:
    """One for each name; "start" and "end" are the classifier's two halves."""
    chosen = {
        "net": nets["net"],
        "g": nets["g"],
        "d": nets["d"],
        "start": nets["net"][:2],  # type: ignore[index]
        "end": nets["net"][2:],  # type: ignore[index]
    }
    if list(names) == ["lbfgs"]:
        return [torch.optim.LBFGS(nets["net"].parameters(), lr=0.05, max_iter=2)]
    return [torch.optim.SGD(chosen[name].parameters(), lr=0.1) for name in names]


def gradients_of(optimizer: Any) -> list[Tensor]:
    """What an optimizer is about to use."""
    found = (p.grad for group in optimizer.param_groups for p in group["params"])
    return [grad.detach().clone() for grad in found if grad is not None]


class WrittenOut:
    """Runs a program without Lightning: every term through autograd from the loss's own graph."""

    def __init__(
        self, primary: str, optimizers: Sequence[str], strength: float, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        self.scaler = torch.amp.GradScaler("cpu", enabled=False) if scaler is None else scaler
        self.nets, self.primary, self.strength = parts(), primary, strength
        self.optimizers = optimizers_of(self.nets, optimizers)
        self.cohort: Cohort | None = None
        self.seen: list[list[Tensor]] = []
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._stepped = False

    def call(self, name: str, x: Tensor) -> Tensor:
        h: Tensor = self.nets[name](x)
        if name != self.primary:
            return h
        if self.cohort is None:
            self.cohort = build_cohort(
                Recording((x,), {}, x, None, h), (x,), self.nets[name], students=list(STUDENTS),
                imitate="distribution", budget=0.1, learning_rate=RATE, seed=0, on_failure="drop",
            ).cohort  # fmt: skip
        predictions = self.cohort.predict(x, None)
        terms = []
        for student, prediction in predictions:
            o = prediction.output.detach()
            both = (forward_kl(h.float(), o).mean() + reverse_kl(h.float(), o).mean()) / 2
            terms.append(both if self.cohort.active[student] else 0 * both)
        self.cohort.learn(predictions, h.detach().float(), {}, None)
        self._calls.append((h, sum(terms) / len(terms)))  # type: ignore[arg-type]
        return h

    def backward(self, loss: Tensor, owed: Owed, **options: Any) -> None:
        terms = [next(term for h, term in self._calls if h is call) for call in owed.get(self.primary, ())]
        mean = torch.stack(terms).mean() if terms else torch.zeros(())
        self.scaler.scale(loss + self.strength * mean).backward(**options)  # type: ignore[no-untyped-call]

    def zero_grad(self, index: int, **options: Any) -> None:
        self.optimizers[index].zero_grad(**options)

    def step(self, index: int, closure: Callable[[], Tensor] | None = None) -> None:
        optimizer = self.optimizers[index]

        def watched() -> Any:
            loss = None if closure is None else closure()
            self.scaler.unscale_(optimizer)
            self.seen.append(gradients_of(optimizer))
            return loss

        if closure is not None:
            optimizer.step(watched)
        else:
            watched()
            scale = self.scaler.get_scale()
            self.scaler.step(optimizer)
            self.scaler.update()
            if self.scaler.get_scale() < scale:
                return  # gradients overflowed: no step
        ours = {id(p) for p in self.nets[self.primary].parameters()}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._stepped = self._stepped or bool(ours & held)

    def toggle(self, index: int) -> None:
        for other in self.optimizers:
            for group in other.param_groups:
                for p in group["params"]:
                    p.requires_grad_(other is self.optimizers[index])

    def untoggle(self, index: int) -> None:
        self.nets.requires_grad_(True)

    def run(
        self, program: "Program", batches: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32
    ) -> None:
        for index, (x, y) in enumerate(batches):
            self._calls, self._stepped = [], False
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                program(self, x, y, index)
            if self._stepped and self.cohort is not None:
                self.cohort.step()


Runner = Any
Program = Callable[[Runner, Tensor, Tensor, int], None]


def make_manual(namespace: Any, program: Program, optimizers: Sequence[str]) -> Any:
    """A LightningModule that runs a program; records the gradients that the optimizers see in `seen`."""

    class Manual(namespace.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.nets = parts()
            self.seen: list[list[Tensor]] = []
            self.task = torch.zeros(())

        def call(self, name: str, x: Tensor) -> Tensor:
            found: Tensor = self.nets[name](x)
            return found

        def backward_by_hand(self, loss: Tensor, owed: Owed, **options: Any) -> None:
            self.manual_backward(loss, **options)

        def by_hand(self) -> Any:
            found = self.optimizers()
            return found if isinstance(found, list) else [found]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            program(_InLightning(self), batch[0], batch[1], batch_idx)

        def configure_optimizers(self) -> Any:
            return optimizers_of(self.nets, optimizers)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.seen.append(gradients_of(optimizer))

    return Manual()


class _InLightning:
    """The runner's verbs, in terms of a LightningModule's own."""

    def __init__(self, module: Any) -> None:
        self.module, self.call, self.backward = module, module.call, module.backward_by_hand

    def zero_grad(self, index: int, **options: Any) -> None:
        self.module.by_hand()[index].zero_grad(**options)

    def step(self, index: int, closure: Callable[[], Tensor] | None = None) -> None:
        self.module.by_hand()[index].step(**({} if closure is None else {"closure": closure}))

    def toggle(self, index: int) -> None:
        self.module.toggle_optimizer(self.module.by_hand()[index])

    def untoggle(self, index: int) -> None:
        self.module.untoggle_optimizer(self.module.by_hand()[index])
