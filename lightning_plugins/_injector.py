"""The one place where something of ours enters somebody else's training step.

While a module is trained, its ``training_step`` is wrapped on the instance. The wrapper lets every attached participant
watch the step, then adds the participants' penalties to the returned loss. Lightning divides by the accumulation count,
scales, hands the loss to DDP and clips *after* that, so a penalty needs no bookkeeping for any of them, and whatever
the user logs inside the step stays the pure task loss.
"""

import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Penalty:
    """A value to add to the loss, given by its gradients.

    Attributes:
        value: Scalar, detached.
        gradients: Pairs of a tensor in the loss's graph and d value / d tensor, of the same shape.
    """

    value: Tensor
    gradients: list[tuple[Tensor, Tensor]]


class Participant(Protocol):
    """Something that watches a training step and may add a penalty to its loss."""

    def before_step(self, batch: Any) -> None:
        """Called right before the user's ``training_step``."""

    def after_step(self, batch: Any) -> Penalty | None:
        """Called right after it, with the graph still alive. None adds nothing."""

    def abandon_step(self) -> None:
        """Called instead of ``after_step`` when the user's step raised."""


class _AddByGradients(torch.autograd.Function):
    """loss + value forward; backward hands ``grad * g_i`` to each tensor, so one graph serves a scaled loss too."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return loss + value.to(loss.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        scale = grad.reshape(()).float()
        # Multiplied in float32 and cast last: a loss scale of 2^16 would already have lost small float16 gradients.
        scaled = [(gradient * scale).to(dtype) for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)]
        return grad, None, None, *scaled


def add_penalty(loss: Tensor, penalty: Penalty) -> Tensor:
    r"""Returns ``loss + penalty.value``, whose backward adds the penalty's gradients.

    A penalty that is not finite is left out whole (value and gradients): our side must never send NaN into the
    primary. The check stays on the device.

    Args:
        loss: One element, any floating dtype.
        penalty: Its value and gradients.

    Returns:
        A tensor of the loss's shape and dtype.
    """
    finite = torch.isfinite(penalty.value)
    for _, gradient in penalty.gradients:
        finite = finite & torch.isfinite(gradient.sum())  # a sum is finite only if every number is
    zero = torch.zeros((), device=penalty.value.device, dtype=penalty.value.dtype)
    gradients = [torch.where(finite, g, zero.to(g.dtype)) for _, g in penalty.gradients]
    tensors = [tensor for tensor, _ in penalty.gradients]
    value = torch.where(finite, penalty.value, zero)
    added: Tensor = _AddByGradients.apply(loss, value, gradients, *tensors)  # type: ignore[no-untyped-call]
    return added


def _with_penalty(result: Any, penalty: Penalty) -> Any:
    """The user's return value with the penalty added to its loss; None (a skipped step) stays None."""
    if isinstance(result, Tensor):
        return add_penalty(result, penalty)
    if isinstance(result, Mapping) and isinstance(result.get("loss"), Tensor):
        return {**result, "loss": add_penalty(result["loss"], penalty)}
    return result


class Injector:
    """Wraps ``training_step`` of one module once, however many callbacks take part.

    Two callbacks that each wrapped and each restored "their" original would leave a wrapper behind; hence one injector
    per module, gone with its last participant.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._participants: list[Participant] = []
        self._shadowed: Callable[..., Any] | None = None

    def attach(self, participant: Participant) -> None:
        """Adds a participant; the first one wraps the step."""
        if not self._participants:
            self._wrap()
        self._participants.append(participant)

    def detach(self, participant: Participant) -> None:
        """Removes a participant, if it is there; the last one restores the step."""
        if participant not in self._participants:
            return
        self._participants.remove(participant)
        if not self._participants:
            self._unwrap()

    def _wrap(self) -> None:
        module = self._module()
        assert module is not None
        # A step that the user had set on the instance must come back as such, not disappear.
        self._shadowed = vars(module).get("training_step")
        original = module.training_step

        @functools.wraps(original)  # type: ignore[arg-type]
        def training_step(*args: Any, **kwargs: Any) -> Any:
            return self._step(original, args, kwargs)  # type: ignore[arg-type]

        vars(module)["training_step"] = training_step

    def _unwrap(self) -> None:
        module = self._module()
        if module is None:
            return
        vars(module).pop("training_step", None)
        if self._shadowed is not None:
            vars(module)["training_step"] = self._shadowed
        _INJECTORS.pop(module, None)

    def _step(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = args[0] if args else next(iter(kwargs.values()), None)
        participants = list(self._participants)
        try:
            for participant in participants:
                participant.before_step(batch)
            result = original(*args, **kwargs)
        except BaseException:
            for participant in participants:
                participant.abandon_step()
            raise
        for participant in participants:
            penalty = participant.after_step(batch)
            if penalty is not None:
                result = _with_penalty(result, penalty)
        return result


_INJECTORS: "weakref.WeakKeyDictionary[nn.Module, Injector]" = weakref.WeakKeyDictionary()


def injector_of(module: nn.Module) -> Injector:
    """The injector of a module: always the same one while anybody is attached to it."""
    if module not in _INJECTORS:
        _INJECTORS[module] = Injector(module)
    return _INJECTORS[module]
