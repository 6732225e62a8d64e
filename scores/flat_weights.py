"""Weights that FSDP1 keeps as flat pieces: which wrapper has whose, and whole ones for a while. Collective, most of it."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def wraps_flat(module: nn.Module) -> bool:
    """Whether it is a wrapper of FSDP1, which passes for what it wraps: it has its attributes."""
    return type(module).__name__ == "FullyShardedDataParallel"


class FlatWeights:
    """The wrappers of FSDP1 in a tree of modules. Without any, everything is whole already, and nothing is done.

    Args:
        root: The tree, from the outermost wrapper on: a module doesn't know what is around it.
    """

    def __init__(self, root: nn.Module) -> None:
        self._holders: dict[nn.Module, Any] = {}
        self._open: set[nn.Module] = set()
        self._find(root, None)

    def _find(self, module: nn.Module, holder: nn.Module | None) -> None:
        if module in self._holders:
            return
        if wraps_flat(module) and module._handle is not None:
            holder = module
        self._holders[module] = holder
        for child in module.children():
            self._find(child, holder)

    def _of(self, module: nn.Module) -> list[Any]:
        """The wrappers that hold weights of the module."""
        holders = dict.fromkeys(self._holders.get(part) for part in module.modules())
        return [holder for holder in holders if holder is not None]

    def without_names(self, module: nn.Module) -> list[Tensor]:
        """What stands for the module's weights where they have no names (``use_orig_params=False``)."""
        return [holder._handle.flat_param for holder in self._of(module) if not holder._handle._use_orig_params]

    def devices(self, module: nn.Module) -> set[torch.device]:
        """Where the module's whole weights are."""
        return {holder.compute_device for holder in self._of(module)}

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """While inside, the module's weights are whole; what is written to them stays. All ranks must enter."""
        with self._opened([holder for holder in self._of(module) if holder not in self._open]):
            yield

    def each(self, module: nn.Module) -> Generator[list[nn.Parameter]]:
        """The module's parameters, whole until the next ones are asked for. All ranks must ask."""
        for holder in dict.fromkeys(self._holders.get(part) for part in module.modules()):
            with self._opened([] if holder is None else [holder]):
                parts = [part for part in module.modules() if self._holders.get(part) is holder]
                here = {id(p): p for part in parts for p in part.parameters(recurse=False)}
                yield list(here.values())

    @contextmanager
    def _opened(self, holders: list[Any]) -> Iterator[None]:
        with ExitStack() as stack:
            for holder in holders:
                stack.enter_context(holder.summon_full_params(holder, recurse=False, writeback=True))
            self._open.update(holders)
            try:
                yield
            finally:
                self._open.difference_update(holders)
