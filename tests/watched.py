"""A harness: trains any program with StudentLegibility and holds each step's gradients against the objective by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from legibility.lightning_plugins import StudentLegibility
from legibility.losses import forward_kl, masked_mean, reverse_kl
from legibility.students import MLPStudent

STRENGTH = 0.7


class Facts(NamedTuple):
    """What the students shall read and imitate in one batch, found without the recorder."""

    inputs: Tensor
    output: Tensor
    mask: Tensor | None = None


@dataclass
class Program:
    """Somebody's training program.

    Attributes:
        net: Makes the model.
        task: The user's loss, from the model and the batch.
        facts: The same forward by hand, in the graph of the model's parameters.
        options: Of the callback.
        batch: One batch.
    """

    net: Callable[[], nn.Module]
    task: Callable[[Any, Any], Tensor]
    facts: Callable[[Any, Any], Facts]
    options: dict[str, Any] = field(default_factory=dict)
    batch: Callable[[], Any] = lambda: rows()


def rows(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """16 rows of 10 features and their class."""
    x = torch.randn(16, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x, x[:, :5].argmax(1)


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Of all positions."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), classes.flatten())


def watched(pl: Any, program: Program, plugin: StudentLegibility) -> Any:
    """A LightningModule that runs the program and checks its own gradients before each step."""

    class Watched(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = program.net()
            self.steps_with_term = 0

        def forward(self, *args: Any) -> Any:
            return self.net(*args)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.batch = batch
            return program.task(self.net, batch)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            assert plugin.built is not None
            facts = program.facts(self.net, self.batch)
            cohort = plugin.built.cohort
            term = torch.zeros(())
            for student, prediction in cohort.predict(facts.inputs.detach(), facts.mask):
                p, q = facts.output.float(), prediction.output.detach()
                both = (forward_kl(p, q) + reverse_kl(p, q)) / 2
                mask = facts.mask if both.ndim == 2 else None
                term = term + cohort.active[student] * masked_mean(both, mask) / len(cohort.networks)
            parameters = [p for p in self.net.parameters() if p.requires_grad]
            task = program.task(self.net, self.batch)
            alone = torch.autograd.grad(task, parameters, allow_unused=True, retain_graph=True)
            added = (
                torch.autograd.grad(STRENGTH * term, parameters, allow_unused=True)
                if term.requires_grad
                else [None] * len(parameters)
            )
            self.steps_with_term += any(g is not None and bool(g.abs().sum() > 1e-4) for g in added)
            for parameter, a, b in zip(parameters, alone, added, strict=True):
                both_ways = sum(g for g in (a, b) if g is not None)
                if isinstance(both_ways, Tensor):
                    torch.testing.assert_close(parameter.grad, both_ways, rtol=2e-3, atol=1e-6)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert plugin.built is not None
            cohort = plugin.built.cohort
            cohort._active = dict.fromkeys(cohort.students, True)  # from the second step on the term has a gradient

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    return Watched()


def loader_of(program: Program, steps: int) -> DataLoader[Any]:
    """The program's batch, again and again."""
    return DataLoader([program.batch() for _ in range(steps)], batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def make_plugin(**options: Any) -> StudentLegibility:
    """The callback without warm-up, with small students."""
    small = {"students": [MLPStudent(width=8, depth=1), MLPStudent(width=4, depth=2)], "imitate": "distribution"}
    return StudentLegibility(STRENGTH, **{"warmup": 0.0, "summary": False, **small, **options})


def fit(
    pl: Any,
    trainer: Callable[..., Any],
    program: Program,
    steps: int = 3,
    prepare: Callable[[Any], Any] = lambda module: module,
) -> StudentLegibility:
    """Trains the program and asserts that each step's gradients were task + strength * term, and the term counted.

    ``prepare`` gets the LightningModule and returns what is given to the trainer.
    """
    plugin = make_plugin(**program.options)
    module = watched(pl, program, plugin)
    trainer(plugin).fit(prepare(module), loader_of(program, steps))
    assert module.steps_with_term == steps - 1, "the term must have mattered, or the test could not fail"
    assert not any(m._forward_hooks for m in module.modules())
    return plugin
