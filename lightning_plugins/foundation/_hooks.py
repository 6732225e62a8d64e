"""Forward hooks that fire for one module only, and that copies of that module do not inherit."""

from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

Act = Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]


class Hooks:
    """Named forward hooks on modules of one tree.

    Args:
        root: The tree.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._handles: dict[str, RemovableHandle] = {}

    def add(self, name: str, module: nn.Module, act: Act) -> None:
        """Calls ``act(name, args, kwargs, result)`` after each call of the module."""
        assert name not in self._handles
        self._handles[name] = module.register_forward_hook(_Hook(name, module, act), with_kwargs=True)

    def keep(self, names: Collection[str]) -> None:
        """Takes all other hooks away."""
        for name in [name for name in self._handles if name not in names]:
            self._handles.pop(name).remove()

    def remove(self) -> None:
        """Takes all hooks away, also from copies that now hang in the tree (a target network, an average)."""
        self.keep(())
        for module in self._root.modules():
            for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, _IdleHook)]:
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)


class _IdleHook:
    """What a copy or a pickle of a hooked module has in the hook's place."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Does nothing."""


class _Hook:
    def __init__(self, name: str, target: nn.Module, act: Act) -> None:
        self._name, self._target, self._act = name, target, act

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        # Some copies keep the hooks themselves (copy.copy, torch.func).
        if module is self._target:
            self._act(self._name, args, kwargs, result)

    def __reduce__(self) -> tuple[type[_IdleHook], tuple[()]]:
        return _IdleHook, ()
