"""Reentrant activation checkpointing: exact where the model's output is in the graph, refused where it is hidden."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import loader, make_module, weights_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from legibility.lightning_plugins import StudentLegibility
from legibility.students import MLPStudent


class _Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=True)


def _module(pl: Any, where: str, *, checkpointed: bool, manual: bool = False) -> Any:
    module = make_module(pl)
    if where == "blocks":
        inner: nn.Module = module.net[1:4]
        module.net = nn.Sequential(module.net[0], _Checkpointed(inner) if checkpointed else inner, module.net[4])

    def step(batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x = x.clone().requires_grad_()  # reentrant checkpointing needs an input with gradients
        whole = checkpointed and where == "whole"
        loss = cross_entropy(checkpoint(module.net, x, use_reentrant=True) if whole else module.net(x), y)
        if not manual:
            return loss
        optimizer = module.optimizers()
        optimizer.zero_grad()
        module.manual_backward(loss)
        optimizer.step()
        return None

    module.training_step = step
    module.automatic_optimization = not manual
    return module


def _plugin(model: str | None) -> StudentLegibility:
    students = [MLPStudent(width=16, depth=1)]
    return StudentLegibility(
        0.7, students=students, model=model, warmup=0.0, learning_rate=1e-2, imitate="distribution", summary=False
    )


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(("where", "model"), [("blocks", "net"), ("blocks", None), ("whole", "net"), ("whole", None)])
def test_it_changes_no_gradient(
    pl: Any, trainer: Callable[..., Any], where: str, model: str | None, manual: bool
) -> None:
    modules = [_module(pl, where, checkpointed=checkpointed, manual=manual) for checkpointed in (False, True)]
    plugins = [_plugin(model), _plugin(model)]
    for module, plugin in zip(modules, plugins, strict=True):
        trainer(plugin).fit(module, loader(rows=200))
    built = plugins[1].built
    assert built is not None and any(built.cohort.active.values())
    for theirs, ours in zip(modules[0].seen, modules[1].seen, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


def test_a_model_inside_of_a_checkpointed_part_is_refused(pl: Any, trainer: Callable[..., Any]) -> None:
    module = _module(pl, "whole", checkpointed=True)
    module.net = nn.Sequential(nn.Sequential(*module.net[:4]), module.net[4])
    before = weights_of(module)
    with pytest.raises(ValueError, match="`model`: 'net.0' is hidden.*`use_reentrant=False`.*`model=`"):
        trainer(_plugin("net.0")).fit(module, loader())
    assert torch.equal(before, weights_of(module)) and not module.net[0]._forward_hooks


def test_calls_without_gradients_of_the_users_own_are_no_calls(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)

    def step(batch: Any, batch_idx: int) -> Any:
        x, y = batch
        with torch.no_grad():
            module.net(x[:3])
        return cross_entropy(module.net(x), y)

    module.training_step = step
    plugin = _plugin("net")
    trainer(plugin).fit(module, loader())
    assert plugin.built is not None and not plugin._warned
