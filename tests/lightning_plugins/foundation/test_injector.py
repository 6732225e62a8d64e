"""The injector: exact gradients, nothing left behind, NaN kept out."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._injector import Penalty, add_penalty, injector_of


class _Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.hidden: Tensor | None = None
        self.fails = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.fails:
            raise RuntimeError("the user's own error")
        self.hidden = self.weight * batch
        return self.hidden.sum()


class _Square:
    """Adds strength * sum(hidden^2), whose gradient is 2 * strength * hidden."""

    def __init__(self, module: _Module, strength: float) -> None:
        self.module, self.strength = module, strength
        self.events: list[str] = []

    def before_step(self, batch: Any) -> None:
        self.events.append("before")

    def abandon_step(self) -> None:
        self.events.append("abandon")

    def around_backward(self, loss: Tensor, batch: Any) -> AbstractContextManager[Penalty | None]:
        self.events.append("backward")
        return nullcontext(self._penalty())

    def after_step(self, batch: Any, loss: Tensor | None) -> Penalty | None:
        self.events.append("after")
        return self._penalty()

    def _penalty(self) -> Penalty:
        hidden = self.module.hidden
        assert hidden is not None
        value = self.strength * hidden.detach().square().sum()
        return Penalty(value, [(hidden, 2 * self.strength * hidden.detach())])


def test_value_and_gradient_by_hand() -> None:
    module = _Module()
    injector_of(module).attach(_Square(module, 0.5))
    loss = module.training_step(torch.tensor([3.0, 4.0]), 0)
    # hidden = (3, 8): 11 + 0.5 * (9 + 64) = 47.5
    assert loss.item() == 47.5
    loss.backward()
    # d/dw = x + 2 * 0.5 * hidden * x = (3 + 9, 4 + 32)
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [12.0, 36.0]


def test_the_penalty_follows_the_scale_of_the_loss() -> None:
    module = _Module()
    injector_of(module).attach(_Square(module, 0.5))
    (module.training_step(torch.tensor([3.0, 4.0]), 0) / 4).backward()
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [3.0, 9.0]


def test_half_precision_gradients_survive_a_loss_scale() -> None:
    hidden = torch.ones(3, dtype=torch.float16, requires_grad=True)
    tiny, scale = 1e-9, 2.0**12  # tiny underflows in float16, tiny * scale does not
    assert torch.tensor(tiny).half() == 0
    loss = add_penalty(0 * hidden.sum(), Penalty(torch.zeros(()), [(hidden, torch.full((3,), tiny))]))
    (loss.float() * scale).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.full((3,), tiny * scale).half()) and (hidden.grad > 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["value", "gradient"])
def test_a_penalty_that_is_not_finite_never_reaches_the_primary(bad: float, where: str) -> None:
    hidden = torch.ones(2, requires_grad=True)
    value = torch.tensor(bad if where == "value" else 1.0)
    gradient = torch.tensor([1.0, bad if where == "gradient" else 1.0])
    loss = add_penalty(hidden.sum(), Penalty(value, [(hidden, gradient)]))
    assert loss.item() == 2.0
    loss.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and hidden.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_loss_keeps_its_shape_and_dtype(shape: tuple[int, ...]) -> None:
    hidden = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = hidden.sum().reshape(shape)
    added = add_penalty(loss, Penalty(torch.tensor(1.0), [(hidden, torch.ones(2))]))
    assert added.shape == shape and added.dtype == torch.float64
    added.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and hidden.grad.tolist() == [2.0, 2.0]


def test_two_participants_add_up_and_the_last_one_unwraps() -> None:
    module = _Module()
    first, second = _Square(module, 0.5), _Square(module, 0.25)
    injector_of(module).attach(first)
    injector_of(module).attach(second)
    assert module.training_step(torch.tensor([3.0, 4.0]), 0).item() == 11 + 0.75 * 73
    injector_of(module).detach(first)
    assert module.training_step(torch.tensor([3.0, 4.0]), 0).item() == 11 + 0.25 * 73
    injector_of(module).detach(second)
    assert "training_step" not in vars(module)
    assert module.training_step(torch.tensor([3.0, 4.0]), 0).item() == 11


def test_a_step_that_the_user_set_on_the_instance_comes_back() -> None:
    module = _Module()
    mine = module.training_step
    vars(module)["training_step"] = mine
    participant = _Square(module, 0.5)
    injector_of(module).attach(participant)
    assert vars(module)["training_step"] is not mine
    injector_of(module).detach(participant)
    assert vars(module)["training_step"] is mine


def test_the_users_error_passes_and_participants_hear_of_it() -> None:
    module = _Module()
    participant = _Square(module, 0.5)
    injector_of(module).attach(participant)
    module.fails = True
    with pytest.raises(RuntimeError, match="the user's own error"):
        module.training_step(torch.ones(2), 0)
    assert participant.events == ["before", "abandon"]


class _Returns(_Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return {"loss": loss, "extra": "kept"} if self.what == "dict" else None


def test_a_mapping_gets_a_new_loss_and_none_stays_none() -> None:
    module = _Returns("dict")
    injector_of(module).attach(_Square(module, 0.5))
    result = module.training_step(torch.tensor([3.0, 4.0]), 0)
    assert result["extra"] == "kept" and result["loss"].item() == 47.5
    skipped = _Returns("none")
    injector_of(skipped).attach(_Square(skipped, 0.5))
    assert skipped.training_step(torch.ones(2), 0) is None


def test_the_signature_stays_readable_for_lightning() -> None:
    import inspect

    module = _Module()
    injector_of(module).attach(_Square(module, 0.5))
    assert list(inspect.signature(module.training_step).parameters) == ["batch", "batch_idx"]


class _Manual(_Module):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss, retain_graph=True)
        return loss

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.given = loss
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]


def test_by_hand_the_loss_given_to_manual_backward_gets_the_penalty_and_the_returned_one_does_not() -> None:
    module = _Manual()
    participant = _Square(module, 0.5)
    injector_of(module).attach(participant)
    assert module.training_step(torch.tensor([3.0, 4.0]), 0).item() == 11
    assert participant.events == ["before", "backward", "after"]
    assert module.given.item() == 47.5
    assert module.weight.grad is not None and module.weight.grad.tolist() == [12.0, 36.0]
    injector_of(module).detach(participant)
    assert "manual_backward" not in vars(module) and "training_step" not in vars(module)


def test_outside_of_the_step_manual_backward_is_the_users_own() -> None:
    module = _Manual()
    participant = _Square(module, 0.5)
    injector_of(module).attach(participant)
    module.manual_backward(module.weight.sum())
    assert participant.events == [] and module.given.item() == 3.0
