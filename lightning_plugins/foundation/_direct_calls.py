"""Calls of a LightningModule as ``self.forward(x)``, which PyTorch's forward hooks don't see."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Act = Callable[[tuple[Any, ...], dict[str, Any], Any], None]


class DirectCalls:
    """Acts after each run of a module's ``forward``, however it was called.

    The class's method is wrapped, not the instance's: a copy of the module made meanwhile would otherwise compute with the
    original's weights. One wrapper for each class, however many take part, gone with the last.

    Args:
        module: Whose calls count; other instances of its class are left alone.
        act: Called with the arguments and the result.
    """

    def __init__(self, module: nn.Module, act: Act) -> None:
        self._module, self._act = weakref.ref(module), act

    def install(self) -> None:
        """Begins, unless the instance has a ``forward`` of its own."""
        module = self._module()
        if module is not None and "forward" not in vars(module) and self not in _listeners(type(module)):
            _wrap(type(module)).append(self)

    def remove(self) -> None:
        """Ends; the last one puts the class's own method back."""
        module = self._module()
        if module is None or self not in _listeners(type(module)):
            return
        _listeners(type(module)).remove(self)
        if not _listeners(type(module)):
            _unwrap(type(module))

    def ran(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A module of the class was run."""
        if module is self._module():
            self._act(args, kwargs, result)


_WRAPPED: dict[type, tuple[Any, Any, list[DirectCalls]]] = {}  # class -> its own method if any, our wrapper, for whom


def _listeners(cls: type) -> list[DirectCalls]:
    return _WRAPPED[cls][2] if cls in _WRAPPED else []


def _wrap(cls: Any) -> list[DirectCalls]:
    if cls not in _WRAPPED:
        inherited, listeners = cls.forward, list[DirectCalls]()

        @functools.wraps(inherited)
        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = inherited(module, *args, **kwargs)
            if not torch.compiler.is_compiling():
                for listener in listeners:
                    listener.ran(module, args, kwargs, result)
            return result

        _WRAPPED[cls] = (vars(cls).get("forward"), forward, listeners)
        cls.forward = forward
    return _WRAPPED[cls][2]


def _unwrap(cls: Any) -> None:
    own, wrapper, _ = _WRAPPED.pop(cls)
    if vars(cls).get("forward") is not wrapper:
        return  # somebody has put another method there since
    if own is None:
        del cls.forward
    else:
        cls.forward = own
