"""Calling a part of a model that FSDP1 wraps further out: the wrappers gather their weights around a call of their own."""

from collections.abc import Callable
from typing import Any

from torch import nn

from legibility.scores.flat_weights import wraps_flat


def redirected(root: nn.Module, part: nn.Module) -> Callable[..., Any]:
    """What calls the part through all wrappers around it, as Lightning does with a `training_step`.

    Args:
        root: The outermost module.
        part: A module below it, or itself.

    Returns:
        Takes the part's arguments; the part itself where no wrapper is around it.
    """
    return _through(_around(root, part) or [], part)


def _around(root: nn.Module, part: nn.Module) -> list[nn.Module] | None:
    """The wrappers on the way from the root to the part, without the part; None if the part isn't there."""
    if root is part:
        return []
    for child in root.children():
        found = _around(child, part)
        if found is not None:
            return [root, *found] if wraps_flat(root) else found
    return None


def _through(wrappers: list[nn.Module], part: nn.Module) -> Callable[..., Any]:
    if not wrappers:
        return part
    outer, rest = wrappers[0], _through(wrappers[1:], part)
    inner: Any = outer._fsdp_wrapped_module
    if inner is part:
        return outer

    def call(*args: Any, **kwargs: Any) -> Any:
        own = vars(inner).get("forward")

        def give_back() -> None:
            if own is not None:
                inner.forward = own
            else:
                vars(inner).pop("forward", None)

        def forward(*args: Any, **kwargs: Any) -> Any:
            give_back()  # the part may call it
            return rest(*args, **kwargs)

        inner.forward = forward
        try:
            return outer(*args, **kwargs)
        finally:
            give_back()

    return call
