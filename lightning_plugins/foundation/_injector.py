"""The one place where something of ours enters somebody else's training step.

While a module is trained, its ``training_step`` is wrapped on the instance. The wrapper lets every attached participant
watch the step, then adds the participants' penalties to the returned loss. Where the module optimizes by hand, the loss
that it gives to ``manual_backward`` gets them instead: that is wrapped too. Lightning divides by the accumulation count,
scales, hands the loss to DDP and clips *after* that, so a penalty needs no bookkeeping for any of them, and whatever
the user logs inside the step stays the pure task loss.
"""

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Penalty:
    """A value to add to the loss, given by its gradients.

    Attributes:
        value: Scalar, detached.
        gradients: Pairs of a tensor with a graph and d value / d tensor, of the same shape.
        source: What a loss must depend on for the penalty to belong to it, where a step has several losses. Not always
            one of those tensors: they may be copies of it, which no loss leads to.
    """

    value: Tensor
    gradients: list[tuple[Tensor, Tensor]]
    source: Tensor | None = None


def total_penalty(penalties: Sequence[Penalty], share: float = 1.0) -> Penalty:
    """Several penalties as one: their sum times ``share``.

    Example:
        >>> h = torch.zeros(2)
        >>> both = total_penalty([Penalty(torch.tensor(v), [(h, torch.full((2,), v))]) for v in (1.0, 3.0)], share=0.5)
        >>> both.value.item(), [gradient.tolist() for _, gradient in both.gradients]
        (2.0, [[0.5, 0.5], [1.5, 1.5]])
    """
    value = torch.stack([penalty.value for penalty in penalties]).sum()
    pairs = [pair for penalty in penalties for pair in penalty.gradients]
    if share == 1:
        return Penalty(value, pairs)
    return Penalty(value * share, [(tensor, gradient * share) for tensor, gradient in pairs])


class Participant(Protocol):
    """Something that watches a training step and may add a penalty to its loss."""

    def before_step(self, batch: Any) -> None:
        """Called right before the user's ``training_step``."""

    def around_backward(self, loss: Tensor, batch: Any) -> AbstractContextManager[Penalty | None]:
        """Entered before, left after each ``manual_backward(loss)`` within the step. None adds nothing."""

    def after_step(self, batch: Any, loss: Tensor | None) -> Penalty | None:
        """Called right after the step, with the graph still alive. None adds nothing.

        In manual optimization nothing can be added any more: what is returned is not used, and ``loss`` is None, as it
        is where the user skips the step.
        """

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

    Raises:
        TypeError: The loss is a DTensor.
    """
    if hasattr(loss, "full_tensor"):
        raise TypeError(
            "`loss` is spread over ranks (DTensor), and the term is not. Return `loss.full_tensor()` from "
            "`training_step`, or give that to `manual_backward`."
        )
    finite = torch.isfinite(penalty.value)
    for _, gradient in penalty.gradients:
        finite = finite & torch.isfinite(gradient.sum())  # a sum is finite only if every number is
    zero = torch.zeros((), device=penalty.value.device, dtype=penalty.value.dtype)
    gradients = [torch.where(finite, g, zero.to(g.dtype)) for _, g in penalty.gradients]
    tensors = [tensor for tensor, _ in penalty.gradients]
    value = torch.where(finite, penalty.value, zero)
    added: Tensor = _AddByGradients.apply(loss, value, gradients, *tensors)  # type: ignore[no-untyped-call]
    return added


def _loss_of(result: Any) -> Tensor | None:
    found = result.get("loss") if isinstance(result, Mapping) else result
    return found if isinstance(found, Tensor) else None


def _with_penalty(result: Any, penalty: Penalty) -> Any:
    """The user's return value with the penalty added to its loss; None (a skipped step) stays None."""
    if isinstance(result, Tensor):
        return add_penalty(result, penalty)
    if isinstance(result, Mapping) and isinstance(result.get("loss"), Tensor):
        return {**result, "loss": add_penalty(result["loss"], penalty)}
    return result


class Injector:
    """Wraps ``training_step`` and ``manual_backward`` of one module once, however many callbacks take part.

    Two callbacks that each wrapped and each restored "their" original would leave a wrapper behind; hence one injector
    per module, gone with its last participant.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._participants: list[Participant] = []
        self._shadowed: dict[str, Any] = {}
        self._watching: list[Participant] = []  # those of the manual step that is running
        self._batch: Any = None

    def attach(self, participant: Participant) -> None:
        """Adds a participant; the first one wraps the step."""
        if not self._participants:
            self._wrap("training_step", self._step)
            self._wrap("manual_backward", self._backward)
        self._participants.append(participant)

    def detach(self, participant: Participant) -> None:
        """Removes a participant, if it is there; the last one restores the step."""
        if participant not in self._participants:
            return
        self._participants.remove(participant)
        if not self._participants:
            self._unwrap()

    def _wrap(self, name: str, ours: Callable[..., Any]) -> None:
        module = self._module()
        original = getattr(module, name, None)
        if original is None:
            return
        # A method that the user had set on the instance must come back as such, not disappear.
        self._shadowed[name] = vars(module).get(name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return ours(original, *args, **kwargs)

        vars(module)[name] = wrapper

    def _unwrap(self) -> None:
        module = self._module()
        if module is None:
            return
        for name, shadowed in self._shadowed.items():
            vars(module).pop(name, None)
            if shadowed is not None:
                vars(module)[name] = shadowed
        self._shadowed = {}
        _INJECTORS.pop(module, None)

    def _step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch = args[0] if args else next(iter(kwargs.values()), None)
        participants = list(self._participants)
        manual = not getattr(self._module(), "automatic_optimization", True)
        try:
            for participant in participants:
                participant.before_step(batch)
            self._watching, self._batch = participants if manual else [], batch
            result = original(*args, **kwargs)
        except BaseException:
            for participant in participants:
                participant.abandon_step()
            raise
        finally:
            self._watching, self._batch = [], None
        loss = None if manual else _loss_of(result)
        for participant in participants:
            penalty = participant.after_step(batch, loss)
            if penalty is not None and not manual:
                result = _with_penalty(result, penalty)
        return result

    def _backward(self, original: Callable[..., Any], loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as around:
            added = loss
            for participant in self._watching:
                penalty = around.enter_context(participant.around_backward(loss, self._batch))
                added = added if penalty is None else add_penalty(added, penalty)
            return original(added, *args, **kwargs)


_INJECTORS: "weakref.WeakKeyDictionary[nn.Module, Injector]" = weakref.WeakKeyDictionary()


def injector_of(module: nn.Module) -> Injector:
    """The injector of a module: always the same one while anybody is attached to it."""
    if module not in _INJECTORS:
        _INJECTORS[module] = Injector(module)
    return _INJECTORS[module]
